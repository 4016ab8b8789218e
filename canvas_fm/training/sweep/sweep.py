"""Run a sweep: every pretraining of a grid, several at once, killed at any moment it goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.errors import CanvasError, counted
from canvas_fm.files.atomic import disk_full_as_error, write_text_atomic
from canvas_fm.files.locks import take_lock
from canvas_fm.files.resumable import check_own_folder
from canvas_fm.progress import bar
from canvas_fm.training.run.folder.run_folder import Run
from canvas_fm.training.sweep.early_stop import EarlyStop
from canvas_fm.training.sweep.grid import GridSource, SweepRecipe, SweepRun, expand, read_sweep, volumes_of
from canvas_fm.training.sweep.linear_readout import score_encoders
from canvas_fm.training.sweep.results import write_results
from canvas_fm.training.sweep.workers import Outcome, PlannedTraining, train_all

SWEEP, RUNS, STATE = "sweep.yaml", "runs", "state"


@dataclass(frozen=True)
class Sweep:
    """A finished sweep's folder: sweep.yaml, runs/NAME, results.csv, results.md and figures."""

    path: Path
    runs: tuple[str, ...]
    failed: dict[str, str]  # the error of each run that is not done

    @property
    def results(self) -> Path:
        """A row a run, as CSV."""
        return self.path / "results.csv"

    @property
    def summary(self) -> Path:
        """The best run of each data set, what each parameter does, the ranking, all runs; Markdown."""
        return self.path / "results.md"


def sweep(
    recipe: GridSource,
    *,
    out: str | Path,
    data: str | Path = ".",
    overrides: Sequence[str] = (),
    workers: int = 1,
    device: str | torch.device = "auto",
    show: bool | None = None,
    **options: Any,
) -> Sweep:
    """Pretrain every combination of a grid and compare them, as in Tables 7 and 8 of the CANVAS paper.

    `recipe` is a path, a shipped name or the settings, `data` the folder that its globs start from,
    `overrides` are `"training.steps=200"` for every run, `workers` the trainings at a time. The same
    call goes on where an earlier one was killed: finished runs stay, begun ones go on from their checkpoint,
    and failed ones are tried again. A run that fails is tried once more at the end, and listed in `failed`.
    With `early_terminate` in the grid, runs that fall behind the others of their data set end early.
    `options` are those of `Volume.open`, for all volumes.

    Raises CanvasError for a mistake in the grid before anything is trained.
    """
    if workers < 1:
        raise CanvasError(f"{counted(workers, 'worker', 'were')} given; a sweep needs at least one")
    spec, path, volume_options = read_sweep(recipe, overrides), Path(out), VolumeOptions.of(**options)
    check_own_folder(path, STATE)
    runs = expand(spec)
    trainings = [
        _job(run, path, Path(data), volume_options, _early_stop(spec, run, runs, path)) for run in runs
    ]
    with disk_full_as_error(path):
        (path / STATE).mkdir(parents=True, exist_ok=True)
    lock = take_lock(path / STATE, path)
    try:
        write_text_atomic(path / SWEEP, yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))
        _train(path, trainings, workers, str(device), show)
        states = {training.name: _state(path, training) for training in trainings}
        done = [run for run in runs if states[run.name].get("error", "") is None]
        encoders = _encoders(path, done)
        readout = score_encoders(spec.linear_readout, path, encoders, Path(data), show, volume_options)
        write_results(spec, path, done, states, readout)
    finally:
        os.close(lock)
    failed = {name: str(state.get("error", "never run")) for name, state in states.items()}
    for run in done:
        del failed[run.name]
    return Sweep(path, tuple(run.name for run in runs), failed)


def _train(
    path: Path, trainings: Sequence[PlannedTraining], workers: int, device: str, show: bool | None
) -> None:
    """Train what is not done, and what failed once more."""
    left = [training for training in trainings if not _is_done(path, training)]
    with bar("sweep", len(trainings), unit="runs", done=len(trainings) - len(left), show=show) as advance:
        failed = []
        for outcome in train_all(left, workers, device):
            _write_state(path, trainings, outcome)
            if outcome.error is None:
                advance(1, outcome.name)
            else:
                failed.append(outcome.name)
        for outcome in train_all([training for training in left if training.name in failed], workers, device):
            _write_state(path, trainings, outcome)
            advance(1, outcome.name)


def _job(
    run: SweepRun, out: Path, data: Path, volume_options: VolumeOptions, early_stop: EarlyStop | None
) -> PlannedTraining:
    train, held_out = volumes_of(run.data_set, data)
    folder = out / RUNS / run.name
    return PlannedTraining(
        run.name, folder, run.recipe, tuple(train), tuple(held_out), volume_options, early_stop
    )


def _early_stop(spec: SweepRecipe, run: SweepRun, runs: Sequence[SweepRun], out: Path) -> EarlyStop | None:
    """Rule by which a run is compared with those of its data set; figures of others mean something else."""
    if spec.early_terminate is None:
        return None
    alike = tuple(out / RUNS / other.name for other in runs if other.data_set == run.data_set)
    return EarlyStop(spec.early_terminate, spec.metric, alike)


def _is_done(path: Path, training: PlannedTraining) -> bool:
    return _state(path, training).get("error", "") is None and Run(training.out).encoder.is_dir()


def _inputs(training: PlannedTraining) -> str:
    """Inputs that determine a run's result."""
    paths = [[str(path.resolve()) for path in part] for part in (training.train, training.held_out)]
    more: list[Any] = [training.volume_options.explicit] if training.volume_options.explicit else []
    if training.early_stop is not None:
        more.append(training.early_stop.rule.model_dump())
    return hashlib.sha256(json.dumps([training.recipe.to_yaml(), paths, *more]).encode()).hexdigest()


def _state(path: Path, training: PlannedTraining) -> dict[str, Any]:
    """Outcome of the last attempt of a run with these inputs; empty where there was none."""
    try:
        state: dict[str, Any] = json.loads(
            (path / STATE / f"{training.name}.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return {}
    return state if state.get("inputs") == _inputs(training) else {}


def _write_state(path: Path, trainings: Sequence[PlannedTraining], outcome: Outcome) -> None:
    """Record how an attempt ended; seconds add up over attempts."""
    training = next(training for training in trainings if training.name == outcome.name)
    before = _state(path, training)
    state = {**asdict(outcome), "inputs": _inputs(training), "attempts": before.get("attempts", 0) + 1}
    for key in ("wall_s", "cpu_s"):
        state[key] += before.get(key, 0.0)
    write_text_atomic(path / STATE / f"{outcome.name}.json", json.dumps(state, indent=1) + "\n")


def _encoders(path: Path, runs: Sequence[SweepRun]) -> dict[str, Path]:
    return {run.name: Run(path / RUNS / run.name).encoder for run in runs}
