"""Joint-embedding pretraining as a task: training positions, evaluation, and the encoder to ship."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from canvas_fm.errors import CanvasError
from canvas_fm.heads.probe.effective_rank import effective_rank
from canvas_fm.models.folder.network_config import DescriptorsConfig, EncoderConfig
from canvas_fm.training.joint.blob_positions import draw_positions
from canvas_fm.training.joint.descriptors import crops_of, with_descriptors
from canvas_fm.training.joint.optimizer_step import JointStep, project
from canvas_fm.training.joint.views import box_zyx
from canvas_fm.training.mae.encoder_task import EncoderTask
from canvas_fm.training.mae.training_crops import CropSet, VolumeSource, shares
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.run.batch_order import Batch, Batches, CropIndices, volume_order
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.folder.run_folder import Run
from canvas_fm.training.run.folder.tracking import Tracker
from canvas_fm.training.run.trainer import Report


class JointPretraining(EncoderTask[JointRecipe]):
    """The task of a joint-embedding pretraining; `held_out` volumes are for evaluation only."""

    label = "joint pretraining"

    def __init__(
        self, recipe: JointRecipe, training: Sequence[VolumeSource], held_out: Sequence[VolumeSource]
    ) -> None:
        super().__init__(recipe, places_of(recipe, training, recipe.data.crops, recipe.seed), held_out)
        self._fixed: list[tuple[str, Tensor, Tensor]] = []
        self._crops_of_descriptors: Tensor | None = None
        self._check_volumes()
        self._descriptors = self._descriptors_config()

    def _check_volumes(self) -> None:
        """CanvasError where a batch cannot be made of so few volumes, or so few places of one."""
        volumes, batch = self.recipe.data.volumes_a_batch, self.recipe.training.batch
        if volumes is None:
            return
        if volumes > len(self.crops.sources):
            raise CanvasError(
                f"data.volumes_a_batch is {volumes}, and {len(self.crops.sources)} volumes are trained on"
            )
        if (least := min(self.crops.counts)) < batch // volumes:
            raise CanvasError(
                f"data.crops leaves {least} places a volume, and a batch takes {batch // volumes} of one "
                f"(training.batch {batch}, data.volumes_a_batch {volumes}); give more data.crops"
            )

    def _descriptors_config(self) -> DescriptorsConfig | None:
        """CanvasError where radii and voxel size leave a ball without voxels of its own."""
        model = self.recipe.model
        if model.descriptors is None:
            return None
        config = model.descriptors.config(self.voxel_um)
        try:
            EncoderConfig.model_validate({**model.encoder.model_dump(), "descriptors": config})
        except ValidationError as problem:
            reason = problem.errors()[0]["msg"].removeprefix("Value error, ")
            raise CanvasError(f"model.descriptors: {reason}") from problem
        return config

    def order(self, first: int) -> Iterator[CropIndices]:
        volumes, recipe = self.recipe.data.volumes_a_batch, self.recipe
        if volumes is None:
            return super().order(first)
        first_rows, batch = self.crops.first_rows, recipe.training.batch
        return volume_order(first_rows, batch, volumes, recipe.seed, first, recipe.steps)

    def batches(self, ranks: Ranks, show: bool | None) -> Batches:
        plain = super().batches(ranks, show)
        return plain if self.recipe.loss.negatives == "all" else _WithVolumes(plain, self.crops)

    def new_step(self, ranks: Ranks, batches: Batches | None) -> JointStep:
        return JointStep(self.recipe, ranks)

    def prepare(self, show: bool | None) -> None:
        settings = self.recipe.evaluation
        for source in self.held_out or self.crops.sources:
            places = places_of(self.recipe, [source], settings.crops, settings.seed)
            boxes = places.read(label=f"reading {source.name}", show=show)
            self._fixed.append((source.name, boxes, torch.from_numpy(places.windows)))

    def evaluate(self, state: JointStep, step: int, tracker: Tracker, run: Run, report: Report) -> None:
        """Metrics of every held-out volume (else of the training ones); writes the encoder."""
        for name, boxes, windows in self._fixed:
            report(f"evaluating {name}")
            tracker.write(
                {"kind": "eval", "step": step, "volume": name, **self._measure(state, boxes, windows)}
            )
        self.ship(state, step, run)

    @torch.inference_mode()
    def _measure(self, state: JointStep, boxes: Tensor, windows: Tensor) -> dict[str, Any]:
        """Top-1 retrieval of a place's second view from its first, and effective rank."""
        model, device = state.result, state.device
        model.eval()
        generator = torch.Generator(device).manual_seed(self.recipe.evaluation.seed)
        pairs = [
            project(model, self.recipe, raw.to(device), window.to(device), generator)
            for raw, window in zip(
                boxes.split(self.recipe.evaluation.batch),
                windows.split(self.recipe.evaluation.batch),
                strict=True,
            )
        ]
        model.train()
        first, second = (F.normalize(torch.cat(side), dim=1) for side in zip(*pairs, strict=True))
        nearest = (first @ second.T).argmax(dim=1).cpu().numpy()
        return {
            "crops": "places",
            "found_again": float((nearest == np.arange(len(nearest))).mean()),
            "chance": 1 / len(nearest),
            "effective_rank": effective_rank(first.double().cpu().numpy()),
        }

    def ship(self, state: JointStep, step: int, run: Run) -> None:
        """Write the current encoder, without projector and with descriptors where there are to be some."""
        encoder, recipe = state.result.encoder, self.recipe
        if self._descriptors is not None:
            if self._crops_of_descriptors is None:
                self._crops_of_descriptors = crops_of(self.crops, recipe.model.encoder.crop_zyx, show=False)
            pool, crops = recipe.model.pool, self._crops_of_descriptors
            encoder = with_descriptors(encoder, pool, self._descriptors, crops.to(state.device))
        self.write_encoder(encoder, step, run)


class _WithVolumes:
    """Batches that also tell the volume of each box, by number."""

    def __init__(self, batches: Batches, crops: CropSet) -> None:
        self.plain, self.first_rows = batches, crops.first_rows

    def along(self, order: Iterator[CropIndices], first: int = 0) -> Generator[Batch]:
        sets = list(order)  # a thread may read ahead along it
        with closing(self.plain.along(iter(sets), first)) as stream:
            for rows, batch in zip(sets, stream, strict=True):
                home = np.searchsorted(self.first_rows, rows, side="right") - 1
                yield *batch, torch.from_numpy(home).to(batch[0].device)


def places_of(recipe: JointRecipe, sources: Sequence[VolumeSource], n: int, seed: int) -> CropSet:
    """`n` boxes, an equal share of every volume, each large enough for all views of its centre."""
    box, data, starts = box_zyx(recipe.model.encoder.crop_zyx, recipe.views), recipe.data, []
    for source, share, own_seed in shares(sources, n, seed):
        starts.append(
            draw_positions(
                source.volume,
                source.box_zyx(box),
                share,
                blobs=data.blobs,
                blob_um=data.blob_um,
                rule=data.window.rule,
                seed=own_seed,
            )
        )
    return CropSet(sources, starts, box, data.window.rule)
