"""Killed at any moment, an embedding goes on and ends with the same bytes."""

from __future__ import annotations

import multiprocessing
import random
import runpy
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.inference.embed.store.embedding_store import Embeddings

from .conftest import make_encoder, noise, random_points, write_volume  # isort: skip

# One server imports everything and has used nothing yet; each child is a fork of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["canvas_fm.inference.embed.embed", "tensorstore"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    make_encoder(folder / "encoder")
    voxels = noise((30, 50, 70))
    write_volume(folder / "brain.zarr", voxels)
    random_points(voxels.shape, 1000).write(folder / "points.csv")
    return folder


def run(inputs: Path, out: Path, *, die_at: int = 0, die_after: float | None = None) -> tuple[bool, float]:
    """An embedding to its end or to its death: whether it ended by itself, and its seconds."""
    begun = PROCESSES.Event()
    settings = {"folder": str(inputs), "out": str(out), "die_at": die_at, "begun": begun}
    child = PROCESSES.Process(
        target=runpy.run_path,
        args=(str(Path(__file__).with_name("kill_child.py")),),
        kwargs={"init_globals": settings},
    )
    child.start()
    assert begun.wait(timeout=250)
    start = time.monotonic()
    if die_after is not None:
        time.sleep(die_after)
        child.kill()
    child.join(timeout=200)
    assert child.exitcode in (0, -9), child.exitcode
    return child.exitcode == 0, time.monotonic() - start


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(inputs: Path) -> Path:
    """The store that no kill has met; the child leaves the number of its steps to the disk in `steps`."""
    assert run(inputs, inputs / "whole.emb.zarr")[0]
    return inputs / "whole.emb.zarr"


def check(whole: Path, out: Path) -> None:
    assert files(out) == files(whole)
    assert not out.with_name(out.name + ".unfinished").exists()
    stored, points = Embeddings.open(out), Points.read(whole.parent / "points.csv")
    np.testing.assert_array_equal(stored.zyx, points.zyx)
    assert stored.verify()


def kill_at_steps(inputs: Path, whole: Path, out: Path, shares: list[float]) -> None:
    """Kill before single steps to the disk, one kill after the other in the same work."""
    steps = int((inputs / "steps").read_text())
    for share in shares:
        ended, _ = run(inputs, out, die_at=1 + int(share * (steps - 1)))
        assert not ended
    assert run(inputs, out)[0]
    check(whole, out)


@pytest.mark.slow
def test_two_kills(inputs, whole, tmp_path):
    """One in the middle, one while what was unfinished is cleared away behind the finished store."""
    kill_at_steps(inputs, whole, tmp_path / "x.emb.zarr", [0.4])
    kill_at_steps(inputs, whole, tmp_path / "y.emb.zarr", [1.0])


@pytest.mark.slow
def test_five_kills_before_steps_to_the_disk(inputs, whole, tmp_path):
    kill_at_steps(inputs, whole, tmp_path / "x.emb.zarr", [0.0, 0.013, 0.21, 0.37, 0.3])


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.8, 0.85, 0.9, 0.95, 0.99])
def test_a_kill_while_the_store_is_put_together(inputs, whole, tmp_path, share):
    kill_at_steps(inputs, whole, tmp_path / "x.emb.zarr", [share])


@pytest.mark.slow
def test_ten_kills_at_any_moment(inputs, whole, tmp_path):
    out = tmp_path / "x.emb.zarr"
    ended, seconds = run(inputs, tmp_path / "timed.emb.zarr")
    assert ended
    rng, kills = random.Random(0), 0
    for _ in range(60):
        ended, _ = run(inputs, out, die_after=rng.uniform(0, seconds / 4))
        kills += not ended
        if ended:  # quicker than the kills: it has to be right, and the next one begins anew
            check(whole, out)
            shutil.rmtree(out)
        if kills == 10:
            break
    assert kills == 10
    assert run(inputs, out)[0]
    check(whole, out)
