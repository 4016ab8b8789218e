"""The training loop: steps, logging, evaluation, checkpoints, resuming after a kill."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from canvas_fm.errors import CanvasError
from canvas_fm.progress import bar
from canvas_fm.training.recipe.recipe import AnyRecipe
from canvas_fm.training.run.batch_order import Batches, CropIndices
from canvas_fm.training.run.distributed import Ranks, join
from canvas_fm.training.run.folder.checkpoint import load_checkpoint, save_checkpoint
from canvas_fm.training.run.folder.run_folder import Run, claim
from canvas_fm.training.run.folder.tracking import METRICS, MetricsLog, Tracker, open_sinks
from canvas_fm.training.run.optimizer import OptimizerState
from canvas_fm.version import __version__

Report = Callable[[str], object]  # a sentence of progress
S = TypeVar("S", bound=OptimizerState)
_FORMAT = 1


@runtime_checkable
class TrainingTask(Protocol[S]):
    """Protocol of a training's task: model, data, evaluation, shipping; such as `Pretraining`."""

    label: str
    folder: str  # the model's, in the run's

    def data(self) -> dict[str, list[dict[str, Any]]]:
        """Identities of its volumes, by role."""
        ...

    def batches(self, ranks: Ranks, show: bool | None) -> Batches: ...

    def order(self, first: int) -> Iterator[CropIndices]:
        """Rows of each optimizer batch from step `first` to the last, a function of seed and step alone."""
        ...

    def new_step(self, ranks: Ranks, batches: Batches | None) -> S:
        """The initial model; without batches it only holds weights."""
        ...

    def prepare(self, show: bool | None) -> None:
        """Read the evaluation data; in the main process only."""
        ...

    def evaluate(self, state: S, step: int, tracker: Tracker, run: Run, report: Report) -> None:
        """Metrics and figures of the evaluation volumes for the current model."""
        ...

    def ship(self, state: S, step: int, run: Run) -> None:
        """Write the current model."""
        ...


def train(
    recipe: AnyRecipe,
    out: str | Path,
    new_task: Callable[[], TrainingTask[S]],
    device: str | torch.device,
    resume: bool,
    show: bool | None,
    early_stop: Callable[[Run], bool] | None = None,
) -> Run:
    """Train a task in the run folder, on this process and its torchrun peers.

    `early_stop` is asked after each evaluation whether the training ends there; in one process only.
    """
    run = Run(Path(out))
    with join(device) as ranks:
        assert early_stop is None or ranks.size == 1
        ranks.local_rows(recipe.training.batch)  # refused before any work where it does not divide
        with claim(run, recipe, resume=resume) if ranks.is_main else nullcontext():
            # The main process goes first: it computes the windows, which the others then only look up.
            if not ranks.is_main:
                ranks.wait()
            task = new_task()
            if ranks.is_main:
                ranks.wait()
            Trainer(recipe, run, ranks, task, show if ranks.is_main else False, early_stop).train()
            ranks.wait()
    return run


def provenance_of(
    recipe: AnyRecipe, step: int, trained_on: list[dict[str, Any]], held_out: list[str], **more: Any
) -> dict[str, Any]:
    """Provenance of a model without paths and times: the same training gives the same identity."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "step": step,
        "trained_on": trained_on,
        "held_out": held_out,
        **more,
        "versions": {"canvas_fm": __version__, "torch": torch.__version__, "timm": version("timm")},
    }


class Trainer(Generic[S]):
    """One rank of a training; only the main process writes, evaluates and reports."""

    step: S

    def __init__(
        self,
        recipe: AnyRecipe,
        run: Run,
        ranks: Ranks,
        task: TrainingTask[S],
        show: bool | None,
        early_stop: Callable[[Run], bool] | None = None,
    ) -> None:
        self.recipe, self.run, self.ranks = recipe, run, ranks
        self.task, self.show, self.early_stop = task, show, early_stop
        self.done = 0  # optimizer steps
        self.pending: list[Tensor] = []  # losses since the last row, of a step one or several

    def train(self) -> None:
        """Train to the end, from the last checkpoint if there is one."""
        saved = load_checkpoint(self.run.checkpoint) if self.run.checkpoint.exists() else None
        if saved is not None:
            self._check_data(saved["data"])
            if saved["step"] == self.recipe.steps:
                self._finish(saved)
                return
        batches = self.task.batches(self.ranks, self.show)
        self.step = self.task.new_step(self.ranks, batches)
        if saved is not None:
            self._load(saved)
        if not self.ranks.is_main:
            self._loop(batches, None)
            return
        self.task.prepare(self.show)
        log = MetricsLog(self.run.path / METRICS, tuple(saved["metrics"]) if saved is not None else None)
        tracker = Tracker(log, open_sinks(self.recipe, self.run.path, self.done))
        try:
            self._loop(batches, tracker)
        finally:
            tracker.close()

    def _load(self, saved: dict[str, Any]) -> None:
        self.step.load_state(saved["stepper"])
        self.done = saved["step"]
        self.pending = list(saved["pending"].to(self.ranks.device))

    def _finish(self, saved: dict[str, Any]) -> None:
        """Rewrite a removed model when the training is already complete."""
        if self.ranks.is_main and not (self.run.path / self.task.folder).exists():
            self.step = self.task.new_step(self.ranks, None)
            self._load(saved)
            self.task.ship(self.step, self.done, self.run)

    def _loop(self, batches: Batches, tracker: Tracker | None) -> None:
        training, steps = self.recipe.training, self.recipe.steps
        local_rows = (rows[self.step.rows] for rows in self.task.order(self.done))
        progress = bar(
            self.task.label,
            steps * training.batch,
            unit="crops",
            done=self.done * training.batch,
            show=self.show if tracker else False,
        )
        began = time.perf_counter()
        with (
            _stop_signal(self.ranks.size == 1) as stop_asked,
            progress as advance,
            closing(batches.along(local_rows, self.done)) as stream,
        ):
            for batch in stream:
                loss, norm = self.step(batch, self.done)
                self.done += 1
                if tracker is None:
                    continue
                note, ends = None, False
                self.pending.append(loss)
                if self._due(training.log_every):
                    seconds, began = time.perf_counter() - began, time.perf_counter()
                    note = f"loss {self._log(tracker, norm, seconds):.4f}"
                if self._due(self.recipe.evaluation.every):
                    paused = time.perf_counter()
                    self.task.evaluate(
                        self.step, self.done, tracker, self.run, lambda sentence: advance(0, sentence)
                    )
                    began += time.perf_counter() - paused  # an evaluation is no time of the training
                    ends = self.early_stop is not None and self.early_stop(self.run)
                stop = stop_asked()
                if stop or ends or self._due(training.checkpoint_every):
                    self._save(tracker)
                advance(training.batch, note)
                if stop:
                    raise stop
                if ends:
                    return

    def _due(self, every: int | None) -> bool:
        """Whether something that happens every so many steps, and at the end, is due."""
        return self.done == self.recipe.steps or (every is not None and self.done % every == 0)

    def _log(self, tracker: Tracker, norm: Tensor, seconds: float) -> float:
        """Log mean losses since the last row; the only synchronisation of the loop with the device."""
        means = torch.stack(self.pending).mean(dim=0).reshape(-1).tolist()
        if not all(math.isfinite(mean) for mean in means):
            raise CanvasError(
                f"the loss is {sum(means)} at step {self.done}: give a lower training.learning_rate, a "
                "training.warmup_steps, or training.precision=fp32"
            )
        row = {
            "kind": "train",
            "step": self.done,
            **dict(zip(self.step.losses, means, strict=True)),
            "grad_norm": float(norm),
            "learning_rate": self.step.learning_rate,
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
            "stepper": self.step.state(),
            "pending": torch.stack(self.pending).cpu() if self.pending else torch.empty(0),
            "metrics": tracker.log.settle(),
        }
        save_checkpoint(self.run.checkpoint, state)

    def _check_data(self, before: dict[str, Any]) -> None:
        """Refuse to resume with different data, naming the first difference."""
        for role, volumes in self.task.data().items():
            names = [[volume["name"] for volume in part] for part in (before[role], volumes)]
            if names[0] != names[1]:
                listings = [", ".join(part) or "none" for part in names]
                raise CanvasError(
                    f"volumes {role} are {listings[1]}, and were {listings[0]}; {self._same_data()}"
                )
            for old, new in zip(before[role], volumes, strict=True):
                for key, value in new.items():
                    if old[key] != value:
                        raise CanvasError(
                            f"volume {new['name']} has {key} {value}, and had {old[key]}; {self._same_data()}"
                        )

    def _same_data(self) -> str:
        return f"--resume goes on with the data that {self.run.path} was started with"


@contextmanager
def _stop_signal(listen: bool) -> Iterator[Callable[[], BaseException | None]]:
    """Exception for a received Ctrl-C or SIGTERM, None if none: a checkpoint is written first.

    The second signal acts at once.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    def raised() -> BaseException | None:
        if not received:
            return None
        return KeyboardInterrupt() if received[0] == signal.SIGINT else SystemExit(128 + received[0])

    if listen and threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, note)
    try:
        yield raised
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
