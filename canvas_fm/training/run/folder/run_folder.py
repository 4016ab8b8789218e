"""The run folder of one training, locked for one process at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import disk_full_as_error, write_text_atomic
from canvas_fm.training.recipe.read_recipe import first_difference, read_recipe_of, recipe_class
from canvas_fm.training.recipe.recipe import AnyRecipe
from canvas_fm.training.run.folder.tracking import METRICS, read_metrics

RECIPE, CHECKPOINT = "recipe.yaml", "last.pt"
ENCODER, DETECTOR = "encoder", "detector"
START = "start"  # a detector folder that a training with `init` starts from


@dataclass(frozen=True)
class Run:
    """A run folder: recipe.yaml, metrics.jsonl, figures/, last.pt, and the model."""

    path: Path

    @property
    def encoder(self) -> Path:
        """Model folder of a pretraining, for `canvas_fm.load`."""
        return self.path / ENCODER

    @property
    def detector(self) -> Path:
        """Model folder of a detector's training."""
        return self.path / DETECTOR

    @property
    def checkpoint(self) -> Path:
        """Checkpoint that `--resume` continues from."""
        return self.path / CHECKPOINT

    @property
    def figures(self) -> Path:
        """Folder of reconstructions of every evaluation, and loss.png."""
        return self.path / "figures"

    def recipe(self) -> AnyRecipe:
        """The resolved recipe, of any kind of training."""
        return read_recipe_of(recipe_class(self.path / RECIPE), self.path / RECIPE)

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; `kind` is train or eval."""
        return read_metrics(self.path / METRICS)

    def is_truncated(self) -> bool:
        """Whether the last line of metrics.jsonl was not written to its end."""
        file = self.path / METRICS
        return file.is_file() and file.read_bytes()[-1:] not in (b"", b"\n")


@contextmanager
def claim(run: Run, recipe: AnyRecipe, *, resume: bool) -> Iterator[None]:
    """Create or resume the run folder and lock it for this process.

    Refuses a folder that holds a training unless `resume`, one that holds something else, another recipe than
    the run's own, and a run that another process is at work on. What killed writes left behind is removed.
    """
    path = run.path
    started = (path / RECIPE).exists()
    if started and not resume:
        raise CanvasError(
            f"{path} already holds a training; give --resume to go on with it, or another --out"
        )
    if path.exists() and not started and (not path.is_dir() or _holds_something(path)):
        raise CanvasError(f"{path} exists and is no run of a training; give another --out")
    with disk_full_as_error(path):
        path.mkdir(parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise CanvasError(f"another process is training in {path}; wait for it or end it") from problem
        _remove_leftovers(path)
        if started:
            _check_recipe(run, recipe)
        else:
            write_text_atomic(path / RECIPE, recipe.to_yaml())
        run.figures.mkdir(exist_ok=True)
        yield
    finally:
        os.close(folder)


def _holds_something(folder: Path) -> bool:
    """Whether the folder holds more than remains of a killed write."""
    return any(not _is_leftover(entry) for entry in folder.iterdir())


def _is_leftover(entry: Path) -> bool:
    return entry.name.startswith(".") and entry.suffix in (".tmp", ".old")


def _remove_leftovers(folder: Path) -> None:
    for entry in [*folder.iterdir(), *(folder / "figures").glob(".*")]:
        if _is_leftover(entry):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _check_recipe(run: Run, recipe: AnyRecipe) -> None:
    differs = first_difference(run.recipe(), recipe)
    if differs is not None:
        key, before, now = differs
        raise CanvasError(
            f"{run.path} was started with {key} = {before!r}, and now it is {now!r}; --resume goes on with "
            "the same recipe: set it back, or give another --out"
        )
