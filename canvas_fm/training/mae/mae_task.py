"""Masked-autoencoder pretraining as a task: crops, evaluations, and the encoder to ship."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from canvas_fm.evaluation.page.figures import loss_figure
from canvas_fm.models.encoder.vit import patch_variance, patchify
from canvas_fm.training.mae.augment import to_unit
from canvas_fm.training.mae.encoder_task import EncoderTask
from canvas_fm.training.mae.optimizer_step import MaeStep
from canvas_fm.training.mae.reconstruction_eval import (
    FixedCrops,
    draw_figure,
    evaluate,
    held_out_crops,
    training_crops,
)
from canvas_fm.training.mae.training_crops import VolumeSource, draw_crops
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.batch_order import Batches, batch_order
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.folder.run_folder import Run
from canvas_fm.training.run.folder.tracking import Tracker
from canvas_fm.training.run.trainer import Report

_SCALE_CROPS = 4096  # crops that σ̄² of the data set is measured on


class Pretraining(EncoderTask[Recipe]):
    """The task of a pretraining, for `train`; `held_out` volumes are for evaluation only."""

    label = "pretraining"

    def __init__(
        self, recipe: Recipe, training: Sequence[VolumeSource], held_out: Sequence[VolumeSource]
    ) -> None:
        crops = draw_crops(
            training,
            recipe.model.encoder.crop_zyx,
            recipe.data.crops,
            foreground=recipe.data.foreground,
            seed=recipe.seed,
            rule=recipe.data.window.rule,
        )
        super().__init__(recipe, crops, held_out)
        self._fixed: list[FixedCrops] = []

    def new_step(self, ranks: Ranks, batches: Batches | None) -> MaeStep:
        return MaeStep(self.recipe, ranks, None if batches is None else self._mean_variance(batches))

    def prepare(self, show: bool | None) -> None:
        if self.held_out:
            self._fixed = held_out_crops(self.recipe, self.held_out, show)
        else:
            self._fixed = training_crops(self.recipe, self.crops.sources, show)

    def evaluate(self, state: MaeStep, step: int, tracker: Tracker, run: Run, report: Report) -> None:
        """Metrics and figures of every set of fixed crops; writes the encoder."""
        for crops in self._fixed:
            report(f"evaluating {crops.volume}, {crops.kind}")
            row = evaluate(self.recipe, state.result, crops, step, state.fixed_variance)
            tracker.write(row)
            if self.recipe.evaluation.figures and crops.kind != "random":
                draw_figure(state.result, crops, row, run.figures)
        if self.recipe.evaluation.figures:
            loss_figure(run.metrics(), run.figures / "loss.png")
        self.ship(state, step, run)

    def ship(self, state: MaeStep, step: int, run: Run) -> None:
        """Write the current encoder, with its decoder."""
        self.write_encoder(state.result, step, run)

    def _mean_variance(self, batches: Batches) -> float | None:
        """σ̄² if the recipe fixes it: as a number, or computed over the unaugmented data set."""
        if self.recipe.loss.scale != "dataset":
            return self.recipe.loss.mean_variance
        n, size = min(self.n_crops, _SCALE_CROPS), self.recipe.evaluation.batch
        rows = next(batch_order(self.n_crops, n, self.recipe.seed, 0, 1))
        parts = (rows[start : start + size] for start in range(0, n, size))
        encoder = self.recipe.model.encoder
        patches = (
            patchify(to_unit(raw, windows), encoder.patch_zyx) for raw, windows in batches.along(parts)
        )
        return float(torch.cat([patch_variance(part, encoder.channels) for part in patches]).mean())
