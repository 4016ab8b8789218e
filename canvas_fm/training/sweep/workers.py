"""Trainings in worker processes: each takes one after the other, and one that dies is replaced."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from canvas_fm.data.dataset.unique_names import unique_names
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.errors import CanvasError
from canvas_fm.training.mae.pretrain import pretrain
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.folder.run_folder import Run
from canvas_fm.training.sweep.early_stop import EarlyStop

_STOP_S = 60.0  # for a checkpoint on the way out


@dataclass(frozen=True)
class PlannedTraining:
    """One training: its name, its run's folder, its recipe, its volumes and how they are opened."""

    name: str
    out: Path
    recipe: Recipe
    train: tuple[Path, ...]
    held_out: tuple[Path, ...]
    volume_options: VolumeOptions = field(default_factory=VolumeOptions.of)
    early_stop: EarlyStop | None = None


@dataclass(frozen=True)
class Outcome:
    """Outcome of a training: its error message, None where it is complete, and seconds of this attempt.

    `stopped_at` is the step after which early stopping ended it.
    """

    name: str
    error: str | None
    wall_s: float
    cpu_s: float
    stopped_at: int | None = None


def train_all(trainings: Sequence[PlannedTraining], workers: int, device: str) -> Iterator[Outcome]:
    """The outcome of every training as it ends; with one worker, in this process.

    The CPU threads of this process are shared out among the workers, and its GPUs where there are several.
    """
    if workers == 1 or len(trainings) < 2:
        yield from (train_one(training, device) for training in trainings)
    else:
        pool = _Pool(min(workers, len(trainings)), device)
        try:
            yield from pool.run(trainings)
        finally:
            pool.close()


def train_one(training: PlannedTraining, device: str) -> Outcome:
    """Train to the end, from the run's last checkpoint where there is one; a failure is an outcome."""
    wall, cpu, error, stopped_at = time.perf_counter(), time.process_time(), None, None
    try:
        volumes = [
            Volume.open(path, **training.volume_options.explicit)
            for path in (*training.train, *training.held_out)
        ]
        names = unique_names(volumes)[len(training.train) :]
        options: dict[str, Any] = {"held_out": names, "device": device, "show": False}
        if training.early_stop is not None:
            options["early_stop"] = training.early_stop
        stopped_at = _stopped_at(
            pretrain(training.recipe, volumes, out=training.out, resume=True, **options), training
        )
    except CanvasError as problem:
        error = str(problem)
    except (RuntimeError, OSError, ValueError, MemoryError) as problem:
        error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:500]}"
    return Outcome(training.name, error, time.perf_counter() - wall, time.process_time() - cpu, stopped_at)


def _stopped_at(run: Run, training: PlannedTraining) -> int | None:
    """The step that a run ended after, None if it is the recipe's last."""
    last = max((row["step"] for row in run.metrics()), default=training.recipe.steps)
    return None if last == training.recipe.steps else int(last)


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    training: PlannedTraining | None = None
    began: float = 0.0


class _Pool:
    def __init__(self, size: int, device: str) -> None:
        self._size, self._threads = size, max(1, torch.get_num_threads() // size)
        gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
        self._devices = deque([f"cuda:{n}" for n in range(gpus)] if gpus > 1 else [device])
        self._context = get_context("spawn")
        self._workers: list[_Worker] = []

    def run(self, trainings: Sequence[PlannedTraining]) -> Iterator[Outcome]:
        waiting = deque(trainings)
        while waiting or any(worker.training for worker in self._workers):
            while waiting and (worker := self._idle()) is not None:
                worker.training, worker.began = waiting.popleft(), time.perf_counter()
                worker.connection.send(worker.training)
            busy = {worker.connection: worker for worker in self._workers if worker.training}
            for connection in wait(list(busy)):
                yield self._outcome(busy[connection])  # type: ignore[index]

    def close(self) -> None:
        """Stop what is running, which leaves checkpoints, and wait for it."""
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_STOP_S)
            if worker.process.is_alive():
                worker.process.kill()
            worker.connection.close()

    def _idle(self) -> _Worker | None:
        idle = next((worker for worker in self._workers if worker.training is None), None)
        return idle or (self._start() if len(self._workers) < self._size else None)

    def _start(self) -> _Worker:
        parent_end, child_end = self._context.Pipe()
        self._devices.rotate(-1)
        process = self._context.Process(
            target=_work, args=(child_end, self._threads, self._devices[0], os.getpid()), daemon=True
        )
        process.start()
        child_end.close()  # so that its end is heard when the process dies
        self._workers.append(_Worker(process, parent_end))
        return self._workers[-1]

    def _outcome(self, worker: _Worker) -> Outcome:
        assert worker.training is not None
        try:
            outcome: Outcome = worker.connection.recv()
        except (EOFError, ConnectionError):
            worker.process.join()
            self._workers.remove(worker)
            worker.connection.close()
            code, wall = worker.process.exitcode, time.perf_counter() - worker.began
            return Outcome(worker.training.name, f"its process ended with exit code {code}", wall, 0.0)
        worker.training = None
        return outcome


def _work(connection: Connection, threads: int, device: str, parent: int) -> None:
    """A worker's life: one training after the other, until it is stopped or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    while True:
        connection.send(train_one(connection.recv(), device))


def _end_with(parent: int) -> None:
    """A sweep that was killed leaves no trainings behind, which would hold their runs' folders."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
