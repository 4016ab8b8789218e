"""What a container gives the service: another user, no home, read-only disks; and the container's recipe."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pytest

import canvas_fm as cf
from canvas_fm.cli import build_parser
from canvas_fm.errors import CanvasError
from canvas_fm.models.load_model import Encoder
from serving.client import Client
from serving.launch.bento.supervisor import private_folder

ROOT = Path(__file__).parents[3]
NOBODY = 12345  # of no name and no home


# --- its recipe


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, continued lines joined, in order."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.strip().split(None, 1)) for line in lines if line.strip()]


def test_the_image_runs_our_verb_as_nobody_and_asks_whether_it_is_ready() -> None:
    held = dict(instructions())  # the last of each kind: those of the image that is shipped
    user, group = map(int, held["USER"].split(":"))
    assert user > 0
    assert group > 0
    words = json.loads(held["ENTRYPOINT"])
    verb = words.index("canvas-fm") + 1
    args = build_parser().parse_args([*words[verb:], *json.loads(held["CMD"])])
    options = args.options
    assert (args.verb, options.host, options.log, args.models) == (
        "serve",
        "0.0.0.0",
        "json",
        [("model", "/model")],
    )
    assert f"127.0.0.1:{options.port}/readyz" in held["HEALTHCHECK"]
    assert held["EXPOSE"] == str(options.port)


def test_the_command_in_its_head_is_understood() -> None:
    head = (ROOT / "Dockerfile").read_text().partition("FROM")[0].replace("\\\n#", " ")
    command = next(line for line in head.splitlines() if "docker run" in line).partition("canvas-fm ")[2]
    args = build_parser().parse_args(["serve", *shlex.split(command)])
    assert {name: served.path for name, served in args.volumes.items()} == {"brain": "/data/brain.zarr"}


def test_all_that_is_copied_is_there_and_let_through() -> None:
    let_through = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M))
    copied = {
        word
        for instruction, rest in instructions()
        if instruction == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
    }
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


# --- a disk that nobody can write to


def test_where_nothing_can_be_written_memory_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tempfile.mkdtemp

    def gettempdir() -> str:
        raise FileNotFoundError("no usable temporary directory")

    def mkdtemp(prefix: str, dir: str) -> str:
        if dir != "/dev/shm":
            raise OSError(30, "Read-only file system")
        return made(prefix=prefix, dir=tmp_path)

    monkeypatch.setattr("tempfile.gettempdir", gettempdir)
    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    assert private_folder().parent == tmp_path
    monkeypatch.setattr("tempfile.mkdtemp", lambda **given: made(dir=tmp_path / "nothing"))
    with pytest.raises(CanvasError, match="name one in TMPDIR"):
        private_folder()


def _can_remount() -> bool:
    tried = ["unshare", "--mount", "true"]
    return os.geteuid() == 0 and shutil.which("setpriv") is not None and subprocess.run(tried).returncode == 0


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Reading is let through (a Python below /root is none that another user could start), writing is not.
READ_ONLY = """
set -e
mount --make-rprivate /
for place in $(awk '$2 !~ "^/(dev|proc|sys)" {print $2}' /proc/mounts | sort -ru); do
  mount -o remount,ro,bind $place
done
! touch "$1/written" 2>/dev/null
exec setpriv --reuid NOBODY --regid NOBODY --clear-groups --no-new-privs \
  --inh-caps +dac_read_search --ambient-caps +dac_read_search \
  env -i PATH="$PATH" PYTHONPATH="$PYTHONPATH" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 "${@:2}"
"""


@pytest.mark.slow
@pytest.mark.skipif(not _can_remount(), reason="needs root, to make the disks read-only for one process")
def test_it_serves_as_nobody_without_a_home_on_read_only_disks(
    model: Path, encoder: Encoder, volume_path: Path, crops, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.zarr"  # its window is remembered elsewhere, if it can be
    shutil.copytree(volume_path, foreign)
    (foreign / "canvas_fm_manifest.json").unlink()
    described = json.loads((foreign / "zarr.json").read_text())
    del described["attributes"]["canvas_fm"]
    (foreign / "zarr.json").write_text(json.dumps(described))
    serve = [sys.executable, "-m", "canvas_fm.cli", "serve", str(model), "--port", "0"]
    serve += ["--volume", f"cube={foreign}"]
    script = READ_ONLY.replace("NOBODY", str(NOBODY))
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", script, "bash", str(tmp_path), *serve],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=log,
        )
    try:
        while "serving on " not in (said := (tmp_path / "log").read_text()):
            assert service.poll() is None, said
        with Client(said.partition("serving on ")[2].split()[0]) as client:
            same(client.embed(crops), cf.embed_crops(encoder, crops))
            points = np.array([[9.0, 20.0, 20.0]])
            expected = cf.embed(encoder, cf.Volume.open(volume_path), points, device="cpu")
            same(client.embed_points("cube", points), expected)
        assert psutil.Process(service.pid).uids().real == NOBODY
    finally:
        service.terminate()
        assert service.wait(40) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
