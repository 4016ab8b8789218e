"""Killed at any moment, a training goes on and ends with the same bytes; a full disk costs it nothing."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import canvas_fm
from canvas_fm.errors import StorageFull
from canvas_fm.training.mae.pretrain import pretrain
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.folder.checkpoint import load_checkpoint
from canvas_fm.training.run.folder.run_folder import Run

from ..conftest import TINY, write_cube  # isort: skip

SCRIPT = Path(__file__).with_name("dying.py")
CALLS = 70  # of steps, syncs and renames that a whole run makes, at least


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Path:
    """Two cubes and a recipe that logs, evaluates and saves at different steps."""
    folder = tmp_path_factory.mktemp("kills")
    for seed, name in enumerate("ab"):
        write_cube(folder, name, seed, (4.0, 1.8, 1.8))
    recipe = TINY | {"training": TINY["training"] | {"steps": 21}}
    recipe["evaluation"] = TINY["evaluation"] | {"every": 7}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def start(inputs: Path, out: Path, *, die_at: int = 0, resume: bool = True) -> ForkServerProcess:
    """A process forked from one that has torch imported already: 20 imports would take minutes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["canvas_fm.training.mae.pretrain"])
    settings = {"folder": str(inputs), "out": str(out), "die_at": die_at, "resume": resume}
    process = context.Process(target=runpy.run_path, args=(str(SCRIPT), settings))
    process.start()
    return process


def finish(inputs: Path, out: Path, **options: int) -> int | None:
    process = start(inputs, out, **options)
    process.join(250)
    return process.exitcode


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing disturbed."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")
    assert finish(inputs, run.path, resume=False) == 0
    return run


def assert_same(run: Run, whole: Run) -> None:
    assert canvas_fm.load(run.encoder).sha256 == canvas_fm.load(whole.encoder).sha256
    for name in ("metrics.jsonl", "recipe.yaml"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert_equal(load_checkpoint(run.checkpoint), load_checkpoint(whole.checkpoint))
    assert sorted(p.name for p in run.path.iterdir()) == sorted(p.name for p in whole.path.iterdir())


def assert_equal(one: Any, other: Any) -> None:
    """Nested dicts, lists and tensors; the bytes of a pickle depend on which strings are one object."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


def kill_and_resume(inputs: Path, whole: Run, out: Path, moments: list[int]) -> None:
    """One run that dies at each of the moments in turn, counted from its start or its last resume."""
    run = Run(out)
    for die_at in moments:
        exitcode = finish(inputs, out, die_at=die_at)
        if exitcode == 0:
            break
        assert exitcode == -signal.SIGKILL
        if run.checkpoint.exists():
            step = load_checkpoint(run.checkpoint)["step"]
            assert step % 4 == 0 or step == run.recipe().steps
    assert finish(inputs, out) == 0
    assert_same(run, whole)


def test_three_kills_one_of_them_inside_a_write(inputs: Path, whole: Run, tmp_path: Path) -> None:
    kill_and_resume(inputs, whole, tmp_path / "run", [2, 13, 9])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_twenty_moments_each_in_a_run_of_its_own(inputs: Path, whole: Run, tmp_path: Path) -> None:
    moments = random.Random(0).sample(range(1, CALLS), 20)
    for die_at in moments:
        kill_and_resume(inputs, whole, tmp_path / str(die_at), [die_at])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_from_outside_at_any_time(inputs: Path, whole: Run, tmp_path: Path) -> None:
    chance, run = random.Random(1), Run(tmp_path / "run")
    killed = 0
    while killed < 20:
        process = start(inputs, run.path)
        process.join(chance.uniform(0.05, 2.0))
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
            continue
        assert process.exitcode == 0
        assert_same(run, whole)
        run = Run(tmp_path / f"run{killed}")
    assert finish(inputs, run.path) == 0
    assert_same(run, whole)


@pytest.mark.parametrize(("number", "exitcode"), [(signal.SIGTERM, 143)])
def test_a_polite_end_leaves_a_checkpoint_of_the_last_step(
    inputs: Path, whole: Run, tmp_path: Path, number: int, exitcode: int
) -> None:
    run = Run(tmp_path / "run")
    process = start(inputs, run.path)
    deadline = time.monotonic() + 200
    while not run.checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(200)
    assert process.exitcode in (exitcode, 0)  # 0: it was done before the signal came
    assert finish(inputs, run.path) == 0
    assert_same(run, whole)


@pytest.mark.parametrize("call", [1, 4, 12])
def test_a_full_disk_is_named_and_the_run_goes_on_later(
    tmp_path: Path,
    cubes: list[Path],
    tiny: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    recipe, calls = tiny(), 0
    sync = os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="no space left on the disk while writing"):
        pretrain(recipe, cubes[:1], out=tmp_path / "run", device="cpu")
    monkeypatch.undo()
    resumed = pretrain(recipe, cubes[:1], out=tmp_path / "run", device="cpu", resume=True)
    whole = pretrain(recipe, cubes[:1], out=tmp_path / "whole", device="cpu")
    assert resumed.metrics() == whole.metrics()
    assert not list(resumed.path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path, cubes: list[Path], tiny: Callable[..., Recipe]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk could be mounted: {mounted.stderr.decode().strip()}")
    try:
        run = Run(disk / "run")
        (disk / "ballast").write_bytes(b"0" * (8 * 2**20 - 200_000))
        with pytest.raises(StorageFull):
            pretrain(tiny(), cubes[:1], out=run.path, device="cpu")
        (disk / "ballast").unlink()
        pretrain(tiny(), cubes[:1], out=run.path, device="cpu", resume=True)
        assert canvas_fm.load(run.encoder).config.provenance["step"] == 8
    finally:
        subprocess.run(["umount", str(disk)], check=False)
