"""BentoML's model store and Bento: what goes in comes out, and a Bento that was built serves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.cli import main
from canvas_fm.errors import CanvasError
from canvas_fm.models.load_model import Encoder, load
from serving.client import Client
from serving.launch.bento.model_store import get, put
from serving.protocol.settings import ServiceSettings
from tests.serving.load.traffic import quiet_port

ROOT = Path(__file__).parents[3]


def test_a_model_comes_out_of_the_store_as_it_went_in(model: Path, encoder: Encoder) -> None:
    tag = put(model, "round-trip")
    assert tag == f"round-trip:{encoder.sha256[:40]}"
    assert put(model, "round-trip") == tag  # the same once more is there already
    for known in (tag, "round-trip:latest", "round-trip"):
        found = load(get(known))
        assert (found.sha256, found.name) == (encoder.sha256, model.name)


def test_the_verb_prints_what_other_verbs_take(model: Path, encoder: Encoder, capsys) -> None:
    assert main(["store", str(model), "--name", "by-verb"]) == 0
    tag = capsys.readouterr().out.strip()
    assert main(["store", tag, "--find"]) == 0
    assert load(capsys.readouterr().out.strip()).sha256 == encoder.sha256


def test_what_changed_in_the_store_is_refused(model: Path) -> None:
    folder = get(put(model, "damaged"))
    config = folder / "config.json"
    config.write_bytes(config.read_bytes().replace(b'"mean"', b'"cls"'))
    with pytest.raises(CanvasError, match="was changed"):
        get("damaged")
    shutil.rmtree(folder)
    with pytest.raises(CanvasError, match="was not made by `canvas-fm store`"):
        get("damaged")


def test_names_and_models_that_are_none(model: Path, tmp_path: Path) -> None:
    for name in ("", "Upper", "a/b", "a:b", "../a", "a" * 64):
        with pytest.raises(CanvasError, match="is no name in the model store"):
            put(model, name)
    with pytest.raises(CanvasError, match="the store holds no model 'absent:1'; it holds"):
        get("absent:1")
    with pytest.raises(CanvasError, match="no model at"):
        put(tmp_path / "nothing")


def test_the_file_of_a_bento_knows_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.launch.bento.bento_package import Packed

    given_by_bentoml = {"model", "name", "workers", "supervisor", "turns"}
    worked_out = {"pinned", "reviewed"}
    told = set(ServiceSettings.model_fields) - given_by_bentoml - worked_out
    assert set(Packed.model_fields) == told | {"allow_remote"}  # of which the pinned addresses are made


def bento(*words: str, cwd: Path, **environment: str) -> str:
    program = str(Path(sys.executable).parent / "bentoml")
    done = subprocess.run(
        [program, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ""} | environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_bento_is_built_and_serves(model, encoder: Encoder, volume_path: Path, tmp_path: Path) -> None:
    """Built in a checkout, served from the store alone: with keys, on the loopback, without open orders."""
    home = {"BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    program = [sys.executable, "-m", "canvas_fm.cli", "store", str(model)]
    subprocess.run(program, cwd=ROOT, env=os.environ | home, check=True)
    said = bento("build", "--output", "tag", cwd=ROOT, **home)
    tag = re.search(r"canvas-fm:\S+", said)[0]
    packed = tmp_path / "bentoml" / "bentos" / tag.replace(":", "/") / "src"
    assert {"canvas_fm", "serving", "recipes"} <= {path.name for path in packed.iterdir()}
    assert not (packed / "tests").exists()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(wanted) <= set((packed.parent / "env/python/requirements.txt").read_text().split("\n"))

    (tmp_path / "keys").write_text("lab correct-horse-battery\n")
    (tmp_path / "keys").chmod(0o600)
    (tmp_path / "settings.yaml").write_text(
        f"volumes: {{cube: {volume_path}}}\nkeys: {tmp_path / 'keys'}\nlimits: {{max_points: 10}}\n"
    )
    (tmp_path / "cwd").mkdir()
    port = quiet_port()
    environment = (
        os.environ | home | {"CANVAS_FM_SETTINGS": str(tmp_path / "settings.yaml"), "PYTHONPATH": ""}
    )
    command = [str(Path(sys.executable).parent / "bentoml"), "serve", tag, "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen(
            command, cwd=tmp_path / "cwd", env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        with Client(f"http://127.0.0.1:{port}", key="correct-horse-battery") as client:
            assert client.ready(wait_s=120), (tmp_path / "log").read_text()
            points = np.array([[9.0, 20.0, 20.0], [12.2, 31.0, 25.4]])
            expected = cf.embed(encoder, cf.Volume.open(volume_path), points, device="cpu")
            np.testing.assert_allclose(client.embed_points("cube", points), expected, rtol=1e-5, atol=1e-6)
            assert client.info()["sha256"] == encoder.sha256
            assert client.info()["limits"]["max_points"] == 10
        with Client(f"http://127.0.0.1:{port}") as stranger, pytest.raises(CanvasError, match="401"):
            stranger.info()
        assert listening(service.pid) == {("127.0.0.1", port)}
    finally:
        service.terminate()
        assert service.wait(40) == 0


def listening(pid: int) -> set[tuple[str, int]]:
    import psutil

    parent = psutil.Process(pid)
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in (parent, *parent.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.slow
def test_a_bento_whose_settings_cannot_be_meant_ends_with_a_sentence(model: Path, tmp_path: Path) -> None:
    home = {"BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    program = [sys.executable, "-m", "canvas_fm.cli", "store", str(model)]
    subprocess.run(program, cwd=ROOT, env=os.environ | home, check=True)
    (tmp_path / "settings.yaml").write_text("volume: {cube: /data/cube.zarr}\n")
    environment = os.environ | home | {"CANVAS_FM_SETTINGS": str(tmp_path / "settings.yaml")}
    command = [str(Path(sys.executable).parent / "bentoml"), "serve", str(ROOT), "--port", "0"]
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "did you mean 'volumes'?" in done.stdout + done.stderr
    assert time.monotonic() - began < 100
