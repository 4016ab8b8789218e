"""The course of one training: steps, log rows, evaluations, checkpoints, and how it goes on after a kill."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from canvas_fm import __version__
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.figures import loss_figure
from canvas_fm.models.checkpoint import save_encoder
from canvas_fm.progress import bar
from canvas_fm.training.augment import to_unit
from canvas_fm.training.checkpoints import load_checkpoint, save_checkpoint
from canvas_fm.training.loop import Stepper
from canvas_fm.training.ranks import Ranks
from canvas_fm.training.recipe import Recipe
from canvas_fm.training.run import Run
from canvas_fm.training.samples import Batches, CropSet, Source, batch_order, take
from canvas_fm.training.scoring import (
    FixedCrops,
    draw_figure,
    evaluate,
    held_out_crops,
    mean_patch_variance,
    training_crops,
)
from canvas_fm.training.tracking import METRICS, MetricsLog, Tracker, open_sinks

_FORMAT = 1
_SCALE_CROPS = 4096  # crops that σ̄² of the data set is measured on


class Session:
    """One process's part in a training. Only the leading process writes, evaluates and shows."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        ranks: Ranks,
        crops: CropSet,
        kept: Sequence[Source],
        show: bool | None,
    ) -> None:
        self.recipe, self.run, self.ranks = recipe, run, ranks
        self.crops, self.kept, self.show = crops, kept, show
        self.done = 0  # optimizer steps
        self.pending: list[Tensor] = []  # losses since the last row

    def go(self) -> None:
        """Train to the end, from the last checkpoint where there is one."""
        saved = load_checkpoint(self.run.checkpoint) if self.run.checkpoint.exists() else None
        if saved is not None:
            self._check_data(saved["data"])
            if saved["step"] == self.recipe.steps:
                self._finish(saved)
                return
        batches = take(self.crops, self.ranks.device, self.recipe.data.resident_gb, self.show)
        self.stepper = Stepper(self.recipe, self.ranks, self._mean_variance(batches))
        if saved is not None:
            self._load(saved)
        if not self.ranks.leads:
            self._train(batches, None, [])
            return
        fixed = self._fixed_crops()
        log = MetricsLog(self.run.path / METRICS, tuple(saved["metrics"]) if saved is not None else None)
        tracker = Tracker(log, open_sinks(self.recipe, self.run.path, self.done))
        try:
            self._train(batches, tracker, fixed)
        finally:
            tracker.close()

    def _load(self, saved: dict[str, Any]) -> None:
        self.stepper.load_state(saved["stepper"])
        self.done = saved["step"]
        self.pending = list(saved["pending"].to(self.ranks.device))

    def _finish(self, saved: dict[str, Any]) -> None:
        """Nothing is left to train; only an encoder that someone removed is written again."""
        if self.ranks.leads and not self.run.encoder.exists():
            self.stepper = Stepper(self.recipe, self.ranks)
            self._load(saved)
            self._ship()

    def _train(self, batches: Batches, tracker: Tracker | None, fixed: Sequence[FixedCrops]) -> None:
        training, steps = self.recipe.training, self.recipe.steps
        order = batch_order(len(self.crops), training.batch, self.recipe.seed, self.done, steps)
        mine = (rows[self.stepper.part] for rows in order)
        progress = bar(
            "pretraining",
            steps * training.batch,
            unit="crops",
            done=self.done * training.batch,
            show=self.show if tracker else False,
        )
        began = time.perf_counter()
        with (
            _asked_to_stop(self.ranks.size == 1) as asked,
            progress as advance,
            closing(batches.along(mine)) as stream,
        ):
            for raw, windows in stream:
                loss, norm = self.stepper(raw, windows, self.done)
                self.done += 1
                if tracker is None:
                    continue
                note = None
                self.pending.append(loss)
                if self._due(training.log_every):
                    seconds, began = time.perf_counter() - began, time.perf_counter()
                    note = f"loss {self._log(tracker, norm, seconds):.4f}"
                if self._due(self.recipe.evaluation.every):
                    self._evaluate(tracker, fixed, lambda note: advance(0, note))
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
        """Write the mean loss since the last row; the only place where the loop waits for the device."""
        loss = float(torch.stack(self.pending).mean())
        if not math.isfinite(loss):
            raise CanvasError(
                f"the loss is {loss} at step {self.done}: give a lower training.learning_rate, a "
                "training.warmup_steps, or training.precision=fp32"
            )
        row = {
            "kind": "train",
            "step": self.done,
            "loss": loss,
            "grad_norm": float(norm),
            "learning_rate": self.stepper.learning_rate,
        }
        crops = len(self.pending) * self.recipe.training.batch
        tracker.write(row, {"crops_per_s": crops / seconds})
        self.pending = []
        return loss

    def _evaluate(self, tracker: Tracker, fixed: Sequence[FixedCrops], tell: Callable[[str], object]) -> None:
        """Rows and figures of every set of fixed crops, and the encoder as it is now."""
        mae = self.stepper.result
        for crops in fixed:
            tell(f"evaluating {crops.volume}, {crops.kind}")
            row = evaluate(self.recipe, mae, crops, self.done)
            tracker.write(row)
            if self.recipe.evaluation.figures and crops.kind != "random":
                draw_figure(mae, crops, row, self.run.figures)
        if self.recipe.evaluation.figures:
            loss_figure(self.run.metrics(), self.run.figures / "loss.png")
        self._ship()

    def _ship(self) -> None:
        """Write the encoder as it is now, with where it comes from.

        No paths and no times are in that, so the same training gives the same identity.
        """
        recipe = self.recipe
        provenance = {
            "recipe": recipe.model_dump(mode="json"),
            "step": self.done,
            "trained_on": self.crops.identity(),
            "held_out": [source.name for source in self.kept],
            "versions": {"canvas_fm": __version__, "torch": torch.__version__, "timm": version("timm")},
        }
        save_encoder(
            self.run.encoder,
            self.stepper.result,
            voxel_um=recipe.data.resample_to or self.crops.sources[0].volume.voxel_um,
            window_rule=recipe.data.window.rule,
            pool=recipe.model.pool,
            provenance=provenance,
        )

    def _save(self, tracker: Tracker) -> None:
        state = {
            "format": _FORMAT,
            "step": self.done,
            "data": self._data(),
            "stepper": self.stepper.state(),
            "pending": torch.stack(self.pending).cpu() if self.pending else torch.empty(0),
            "metrics": tracker.log.settle(),
        }
        save_checkpoint(self.run.checkpoint, state)

    def _fixed_crops(self) -> list[FixedCrops]:
        if self.kept:
            return held_out_crops(self.recipe, self.kept, self.show)
        return training_crops(self.recipe, self.crops.sources, self.show)

    def _mean_variance(self, batches: Batches) -> float | None:
        """σ̄² where the recipe fixes it: as given, or of the data set as it is before augmentation."""
        if self.recipe.loss.scale != "dataset":
            return self.recipe.loss.mean_variance
        n, size = min(len(self.crops), _SCALE_CROPS), self.recipe.evaluation.batch
        rows = next(batch_order(len(self.crops), n, self.recipe.seed, 0, 1))
        parts = (rows[start : start + size] for start in range(0, n, size))
        crops = (to_unit(raw, windows) for raw, windows in batches.along(parts))
        return mean_patch_variance(crops, self.recipe.model.encoder.patch_zyx)

    def _data(self) -> dict[str, Any]:
        rule = self.recipe.data.window.rule
        return {
            "trained on": self.crops.identity(),
            "held out": [source.identity(rule) for source in self.kept],
        }

    def _check_data(self, before: dict[str, Any]) -> None:
        """Refuse to go on with other data than the run's, naming the first difference."""
        for role, volumes in self._data().items():
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
