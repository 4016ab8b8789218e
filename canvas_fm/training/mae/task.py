"""Pretraining as a task: the masked autoencoder's crops, its evaluations, and the encoder that ships."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from canvas_fm.evaluation.figures import loss_figure
from canvas_fm.models.checkpoint import save_encoder
from canvas_fm.models.vit import patchify
from canvas_fm.training.mae.augment import to_unit
from canvas_fm.training.mae.crop_set import Batches, CropSet, Source, batch_order, take
from canvas_fm.training.mae.reconstruction_eval import (
    FixedCrops,
    draw_figure,
    evaluate,
    held_out_crops,
    training_crops,
)
from canvas_fm.training.mae.step import Stepper
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.run_folder import ENCODER, Run
from canvas_fm.training.run.tracking import Tracker
from canvas_fm.training.run.trainer import Tell
from canvas_fm.version import __version__

_SCALE_CROPS = 4096  # crops that σ̄² of the data set is measured on


class Pretraining:
    """What a Session trains when it pretrains: `kept` are the volumes that are only evaluated on."""

    label = "pretraining"
    folder = ENCODER

    def __init__(self, recipe: Recipe, drawn: CropSet, kept: Sequence[Source]) -> None:
        self.recipe, self.drawn, self.kept = recipe, drawn, kept
        self.crops = len(drawn)
        self._fixed: list[FixedCrops] = []

    def data(self) -> dict[str, list[dict[str, Any]]]:
        rule = self.recipe.data.window.rule
        return {
            "trained on": self.drawn.identity(),
            "held out": [source.identity(rule) for source in self.kept],
        }

    def batches(self, ranks: Ranks, show: bool | None) -> Batches:
        return take(self.drawn, ranks.device, self.recipe.data.resident_gb, show)

    def stepper(self, ranks: Ranks, batches: Batches | None) -> Stepper:
        return Stepper(self.recipe, ranks, None if batches is None else self._mean_variance(batches))

    def prepare(self, show: bool | None) -> None:
        if self.kept:
            self._fixed = held_out_crops(self.recipe, self.kept, show)
        else:
            self._fixed = training_crops(self.recipe, self.drawn.sources, show)

    def evaluate(self, stepper: Stepper, step: int, tracker: Tracker, run: Run, tell: Tell) -> None:
        """Rows and figures of every set of fixed crops, and the encoder as it is now."""
        for crops in self._fixed:
            tell(f"evaluating {crops.volume}, {crops.kind}")
            row = evaluate(self.recipe, stepper.result, crops, step, stepper.fixed_variance)
            tracker.write(row)
            if self.recipe.evaluation.figures and crops.kind != "random":
                draw_figure(stepper.result, crops, row, run.figures)
        if self.recipe.evaluation.figures:
            loss_figure(run.metrics(), run.figures / "loss.png")
        self.ship(stepper, step, run)

    def ship(self, stepper: Stepper, step: int, run: Run) -> None:
        """Write the encoder as it is now, with where it comes from.

        No paths and no times are in that, so the same training gives the same identity.
        """
        recipe = self.recipe
        provenance = {
            "recipe": recipe.model_dump(mode="json"),
            "step": step,
            "trained_on": self.drawn.identity(),
            "held_out": [source.name for source in self.kept],
            "versions": {"canvas_fm": __version__, "torch": torch.__version__, "timm": version("timm")},
        }
        save_encoder(
            run.encoder,
            stepper.result,
            voxel_um=recipe.data.resample_to or self.drawn.sources[0].volume.voxel_um,
            window_rule=recipe.data.window.rule,
            pool=recipe.model.pool,
            provenance=provenance,
        )

    def _mean_variance(self, batches: Batches) -> float | None:
        """σ̄² where the recipe fixes it: as given, or of the data set as it is before augmentation."""
        if self.recipe.loss.scale != "dataset":
            return self.recipe.loss.mean_variance
        n, size = min(self.crops, _SCALE_CROPS), self.recipe.evaluation.batch
        rows = next(batch_order(self.crops, n, self.recipe.seed, 0, 1))
        parts = (rows[start : start + size] for start in range(0, n, size))
        patch_zyx = self.recipe.model.encoder.patch_zyx
        patches = (patchify(to_unit(raw, windows), patch_zyx) for raw, windows in batches.along(parts))
        return float(torch.cat([part.var(dim=-1, unbiased=False) for part in patches]).mean())
