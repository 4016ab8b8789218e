"""Base of the pretraining tasks of an encoder: data, batches, and the encoder that is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from canvas_fm.data.zyx import ZyxUm
from canvas_fm.models.encoder.mae import MaskedAutoencoder
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.load_model import load, save_encoder
from canvas_fm.training.mae.training_crops import CropSet, VolumeSource, take
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.batch_order import Batches, CropIndices, batch_order
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.folder.run_folder import ENCODER, Run
from canvas_fm.training.run.trainer import provenance_of

R = TypeVar("R", Recipe, JointRecipe)


class EncoderTask(Generic[R]):
    """Training crops and held-out volumes, which are for evaluation only."""

    folder = ENCODER

    def __init__(self, recipe: R, crops: CropSet, held_out: Sequence[VolumeSource]) -> None:
        self.recipe: R = recipe
        self.crops, self.n_crops, self.held_out = crops, len(crops), held_out

    @property
    def voxel_um(self) -> ZyxUm:
        """Voxel size at which crops are read."""
        return self.recipe.data.resample_to or self.crops.sources[0].volume.voxel_um

    def data(self) -> dict[str, list[dict[str, Any]]]:
        rule = self.recipe.data.window.rule
        return {
            "trained on": self.crops.identity(),
            "held out": [source.identity(rule) for source in self.held_out],
        }

    def batches(self, ranks: Ranks, show: bool | None) -> Batches:
        return take(self.crops, ranks.device, self.recipe.data.resident_gb, show)

    def order(self, first: int) -> Iterator[CropIndices]:
        recipe = self.recipe
        return batch_order(self.n_crops, recipe.training.batch, recipe.seed, first, recipe.steps)

    def write_encoder(self, model: MaskedAutoencoder | ViTEncoder, step: int, run: Run) -> None:
        """Write the current encoder with its provenance.

        No paths and no times are in that, so the same training gives the same identity.
        """
        recipe = self.recipe
        names = [source.name for source in self.held_out]
        provenance = provenance_of(recipe, step, self.crops.identity(), names)
        if isinstance(recipe, JointRecipe) and recipe.start is not None:
            # What the weights that it started from had seen, this encoder has seen too.
            start = load(recipe.start, kind="encoder")
            before: dict[str, Any] = start.config.provenance
            provenance["recipe"] |= {"start": start.sha256}
            provenance["start_trained_on"] = [
                *(before.get("start_trained_on") or []), *(before.get("trained_on") or [])
            ]  # fmt: skip
        save_encoder(
            run.encoder,
            model,
            voxel_um=self.voxel_um,
            window_rule=recipe.data.window.rule,
            pool=recipe.model.pool,
            provenance=provenance,
        )
