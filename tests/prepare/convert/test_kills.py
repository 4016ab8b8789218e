"""A conversion that is killed again and again ends with the bytes of one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError
from tests.prepare.planes import UM, bytes_of, voxels, write_planes

ROOT = Path(__file__).parents[3]
CHILD = Path(__file__).with_name("kill_child.py")


@pytest.fixture(scope="module")
def run():
    """`run(source, out, dies_at)` converts in a process: its exit code (9 if killed) and message."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(CHILD)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as parent:  # fmt: skip
        assert parent.stdin is not None
        assert parent.stdout is not None

        def convert(source: Path, out: Path, dies_at: int) -> tuple[int, str]:
            parent.stdin.write(json.dumps([str(source), str(out), dies_at]) + "\n")
            return tuple(json.loads(parent.stdout.readline()))

        yield convert
        parent.stdin.close()


def test_killed_at_several_files_it_goes_on_to_the_same_bytes(tmp_path, run):
    source = write_planes(tmp_path / "planes", voxels())
    (tmp_path / "killed").mkdir()
    kills = 0
    for dies_at in (1, 5, 20, 41, 80, 90, 10**9):
        code, message = run(source, tmp_path / "killed/a.zarr", dies_at)
        assert code in (0, 9), message
        if code == 0:
            break
        kills += 1
        assert not (tmp_path / "killed/a.zarr").exists()
        with pytest.raises(CanvasError):
            cf.Volume.open(tmp_path / "killed/a.zarr.unfinished/store")
    assert kills >= 3
    (tmp_path / "alone").mkdir()
    assert run(source, tmp_path / "alone/a.zarr", 10**9) == (0, "")
    assert bytes_of(tmp_path / "killed/a.zarr") == bytes_of(tmp_path / "alone/a.zarr")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["a.zarr"]


@pytest.mark.slow
def test_twenty_kills_change_no_byte(tmp_path, run):
    """Each comes a slab or two further; none leaves a store that carries the name."""
    source = write_planes(tmp_path / "planes", voxels((400, 90, 75)))
    for folder in ("killed", "alone"):
        (tmp_path / folder).mkdir()
    for kill in range(20):
        assert run(source, tmp_path / "killed/a.zarr", 9 + kill % 5)[0] == 9
        assert not (tmp_path / "killed/a.zarr").exists()
    for folder in ("killed", "alone"):
        assert run(source, tmp_path / folder / "a.zarr", 10**9) == (0, "")
    assert bytes_of(tmp_path / "killed/a.zarr") == bytes_of(tmp_path / "alone/a.zarr")


def test_other_options_do_not_resume(tmp_path, run):
    source = write_planes(tmp_path / "planes", voxels())
    assert run(source, tmp_path / "a.zarr", 30)[0] == 9
    with pytest.raises(CanvasError, match=r"was made from other inputs: voxel_um .was \[2.0, 2.0, 2.0\]"):
        cf.convert(source, tmp_path / "a.zarr", voxel_um=(*UM[:2], 3.0), chunk_zyx=(8, 32, 32), levels=5)
    (source / "plane_0001.tif").touch()
    with pytest.raises(CanvasError, match="was made from other inputs: source files"):
        cf.convert(source, tmp_path / "a.zarr", voxel_um=UM, chunk_zyx=(8, 32, 32), levels=5)
