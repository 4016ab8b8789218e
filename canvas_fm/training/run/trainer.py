"""The course of one training: steps, log rows, evaluations, checkpoints, and how it goes on after a kill."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from canvas_fm.errors import CanvasError
from canvas_fm.progress import bar
from canvas_fm.training.mae.crop_set import Rows, batch_order
from canvas_fm.training.recipe.recipe import AnyRecipe
from canvas_fm.training.run.checkpoint import load_checkpoint, save_checkpoint
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.run_folder import Run
from canvas_fm.training.run.tracking import METRICS, MetricsLog, Tracker, open_sinks

Tell = Callable[[str], object]
_FORMAT = 1


@runtime_checkable
class Batches(Protocol):
    """Where a training takes its crops from: of each set of rows what its stepper takes, on the device."""

    def along(self, order: Iterator[Rows], first: int = 0) -> Generator[tuple[Tensor, ...]]:
        """The crops of each set of rows; `first` is the step of the first set."""
        ...


@runtime_checkable
class Steps(Protocol):
    """What makes the steps: `Course` and a way to make one from a batch."""

    part: slice
    losses: tuple[str, ...]  # the names of what it returns first: the loss, and what is told beside it

    @property
    def learning_rate(self) -> float: ...

    def __call__(self, *batch_and_step: Any) -> tuple[Tensor, Tensor]: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Task(Protocol):
    """What is trained, on what, and what is looked at and shipped on the way."""

    label: str
    folder: str  # the model's, in the run's
    crops: int

    def data(self) -> dict[str, list[dict[str, Any]]]:
        """What tells its volumes from others, by their role."""
        ...

    def batches(self, ranks: Ranks, show: bool | None) -> Any: ...

    def stepper(self, ranks: Ranks, batches: Any) -> Any:
        """At its start; without batches it only carries weights."""
        ...

    def prepare(self, show: bool | None) -> None:
        """Read what evaluations look at; only in the leading process."""
        ...

    def evaluate(self, stepper: Any, step: int, tracker: Tracker, run: Run, tell: Tell) -> None:
        """Rows and figures of what is kept for evaluation, and the model as it is now."""
        ...

    def ship(self, stepper: Any, step: int, run: Run) -> None:
        """Write the model as it is now."""
        ...


class Session:
    """One process's part in a training. Only the leading process writes, evaluates and shows."""

    def __init__(self, recipe: AnyRecipe, run: Run, ranks: Ranks, task: Task, show: bool | None) -> None:
        self.recipe, self.run, self.ranks = recipe, run, ranks
        self.task, self.show = task, show
        self.done = 0  # optimizer steps
        self.pending: list[Tensor] = []  # losses since the last row, of a step one or several

    def go(self) -> None:
        """Train to the end, from the last checkpoint where there is one."""
        saved = load_checkpoint(self.run.checkpoint) if self.run.checkpoint.exists() else None
        if saved is not None:
            self._check_data(saved["data"])
            if saved["step"] == self.recipe.steps:
                self._finish(saved)
                return
        batches: Batches = self.task.batches(self.ranks, self.show)
        self.stepper: Steps = self.task.stepper(self.ranks, batches)
        if saved is not None:
            self._load(saved)
        if not self.ranks.leads:
            self._train(batches, None)
            return
        self.task.prepare(self.show)
        log = MetricsLog(self.run.path / METRICS, tuple(saved["metrics"]) if saved is not None else None)
        tracker = Tracker(log, open_sinks(self.recipe, self.run.path, self.done))
        try:
            self._train(batches, tracker)
        finally:
            tracker.close()

    def _load(self, saved: dict[str, Any]) -> None:
        self.stepper.load_state(saved["stepper"])
        self.done = saved["step"]
        self.pending = list(saved["pending"].to(self.ranks.device))

    def _finish(self, saved: dict[str, Any]) -> None:
        """Nothing is left to train; only a model that someone removed is written again."""
        if self.ranks.leads and not (self.run.path / self.task.folder).exists():
            self.stepper = self.task.stepper(self.ranks, None)
            self._load(saved)
            self.task.ship(self.stepper, self.done, self.run)

    def _train(self, batches: Batches, tracker: Tracker | None) -> None:
        training, steps = self.recipe.training, self.recipe.steps
        order = batch_order(self.task.crops, training.batch, self.recipe.seed, self.done, steps)
        mine = (rows[self.stepper.part] for rows in order)
        progress = bar(
            self.task.label,
            steps * training.batch,
            unit="crops",
            done=self.done * training.batch,
            show=self.show if tracker else False,
        )
        began = time.perf_counter()
        with (
            _asked_to_stop(self.ranks.size == 1) as asked,
            progress as advance,
            closing(batches.along(mine, self.done)) as stream,
        ):
            for batch in stream:
                loss, norm = self.stepper(*batch, self.done)
                self.done += 1
                if tracker is None:
                    continue
                note = None
                self.pending.append(loss)
                if self._due(training.log_every):
                    seconds, began = time.perf_counter() - began, time.perf_counter()
                    note = f"loss {self._log(tracker, norm, seconds):.4f}"
                if self._due(self.recipe.evaluation.every):
                    self.task.evaluate(
                        self.stepper, self.done, tracker, self.run, lambda note: advance(0, note)
                    )
                    began = time.perf_counter()
                stop = asked()
                if stop or self._due(training.checkpoint_every):
                    self._save(tracker)
                advance(training.batch, note)
                if stop:
                    raise stop

    def _due(self, every: int | None) -> bool:
        """Whether something that comes every so many steps, and at the end, comes now."""
        return self.done == self.recipe.steps or (every is not None and self.done % every == 0)

    def _log(self, tracker: Tracker, norm: Tensor, seconds: float) -> float:
        """Write the mean losses since the last row; the only place where the loop waits for the device."""
        means = torch.stack(self.pending).mean(dim=0).reshape(-1).tolist()
        if not all(math.isfinite(mean) for mean in means):
            raise CanvasError(
                f"the loss is {sum(means)} at step {self.done}: give a lower training.learning_rate, a "
                "training.warmup_steps, or training.precision=fp32"
            )
        row = {
            "kind": "train",
            "step": self.done,
            **dict(zip(self.stepper.losses, means, strict=True)),
            "grad_norm": float(norm),
            "learning_rate": self.stepper.learning_rate,
        }
        crops = len(self.pending) * self.recipe.training.batch
        tracker.write(row, {"crops_per_s": crops / seconds})
        self.pending = []
        return float(means[0])

    def _save(self, tracker: Tracker) -> None:
        state = {
            "format": _FORMAT,
            "step": self.done,
            "data": self.task.data(),
            "stepper": self.stepper.state(),
            "pending": torch.stack(self.pending).cpu() if self.pending else torch.empty(0),
            "metrics": tracker.log.settle(),
        }
        save_checkpoint(self.run.checkpoint, state)

    def _check_data(self, before: dict[str, Any]) -> None:
        """Refuse to go on with other data than the run's, naming the first difference."""
        for role, volumes in self.task.data().items():
            names = [[volume["name"] for volume in part] for part in (before[role], volumes)]
            if names[0] != names[1]:
                what = [", ".join(part) or "none" for part in names]
                raise CanvasError(f"volumes {role} are {what[1]}, and were {what[0]}; {self._same_data()}")
            for old, new in zip(before[role], volumes, strict=True):
                for key, value in new.items():
                    if old[key] != value:
                        raise CanvasError(
                            f"volume {new['name']} has {key} {value}, and had {old[key]}; {self._same_data()}"
                        )

    def _same_data(self) -> str:
        return f"--resume goes on with the data that {self.run.path} was started with"


@contextmanager
def _asked_to_stop(listen: bool) -> Iterator[Callable[[], BaseException | None]]:
    """What to raise because Ctrl-C or SIGTERM came, None if none did: a checkpoint can be written first.

    The second signal acts at once.
    """
    came: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    def asked() -> BaseException | None:
        if not came:
            return None
        return KeyboardInterrupt() if came[0] == signal.SIGINT else SystemExit(128 + came[0])

    if listen and threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
