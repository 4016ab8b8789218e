"""Batches of a detector's training: crops of volumes and of phantoms, with windows and painted labels."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing

import numpy as np
import torch
from torch import Tensor

from canvas_fm.data.volume.volume import ZyxUm
from canvas_fm.training.detector.phantoms import PhantomCrops
from canvas_fm.training.detector.targets import BACKGROUND, CELL, Labelled, TargetPainter
from canvas_fm.training.mae.augment import widen
from canvas_fm.training.mae.training_crops import CropSet, VolumeSource, stacked, take
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.run.batch_order import Batch, Batches, CropIndices
from canvas_fm.training.run.distributed import Ranks


class LabelledBatches:
    """Batches of crops, windows and labels on the device."""

    def __init__(
        self,
        recipe: DetectorRecipe,
        training: list[Labelled],
        drawn: CropSet,
        voxel_um: ZyxUm,
        ranks: Ranks,
        show: bool | None,
    ) -> None:
        data = recipe.data
        self.drawn, self.device = drawn, ranks.device
        self.painters = [
            TargetPainter(labelled, data.crop_zyx, recipe.target.radius_um) for labelled in training
        ]
        self.phantoms = None
        self.part = ranks.local_rows(recipe.training.batch)
        if recipe.phantoms is not None:
            self.phantoms = PhantomCrops(
                recipe.phantoms, data.crop_zyx, voxel_um, data.window.rule, recipe.target.radius_um,
                recipe.seed, recipe.phantoms_a_batch, data.cells, recipe.model.channels,
            )  # fmt: skip
        self.channels: list[Batches] = [take(drawn, ranks.device, data.resident_gb, show)] if training else []
        for volumes, needed in (
            ([labelled.background for labelled in training], recipe.model.channels == 2),
            ([labelled.mask for labelled in training], recipe.target.kind == "masks"),
        ):
            if needed:
                sources = [
                    VolumeSource(labelled.source.name, volume, labelled.source.resample_to)
                    for labelled, volume in zip(training, volumes, strict=True)
                    if volume is not None
                ]
                other = CropSet(sources, drawn.starts_zyx, data.crop_zyx, data.window.rule)
                self.channels.append(take(other, ranks.device, data.resident_gb, show))
        self.masks = self.channels.pop() if recipe.target.kind == "masks" else None

    def along(self, order: Iterator[CropIndices], first: int = 0) -> Generator[Batch]:
        """Crops, windows and labels for each set of rows; phantoms fill the first rows of a batch."""
        if self.phantoms is None:
            yield from self._real(order)
            return
        batch, n_phantoms = range(self.part.start, self.part.stop), self.phantoms.per_batch
        n_local_phantoms = sum(place < n_phantoms for place in batch)
        real = (
            self._real(rows[n_local_phantoms:] for rows in order) if n_local_phantoms < len(batch) else None
        )
        steps = itertools.count(first) if real else (first + k for k, _ in enumerate(order))
        for step in steps:
            part = slice(self.part.start, self.part.start + n_local_phantoms)
            drawn = [torch.from_numpy(values[part]) for values in self._phantom_parts(step)]
            raw, windows, labels = (values.to(self.device) for values in drawn)
            if real is None:
                yield raw, windows, labels
                continue
            rest = next(real, None)
            if rest is None:
                return
            parts = [raw.to(rest[0].dtype) if rest[0].dtype == raw.dtype else widen(raw), windows, labels]
            yield tuple(torch.cat(pair) for pair in zip(parts, rest, strict=True))

    def _phantom_parts(self, step: int) -> tuple[np.ndarray, ...]:
        assert self.phantoms is not None
        crops, windows, labels = self.phantoms.at(step)
        return crops.view(np.int16), windows, labels

    def _real(self, order: Iterator[CropIndices]) -> Generator[Batch]:
        sets = list(order)  # several readers go along it, each in a thread of its own
        readers = [*self.channels, *([self.masks] if self.masks else [])]
        with ExitStack() as stack:
            streams = [stack.enter_context(closing(reader.along(iter(sets)))) for reader in readers]
            for rows, *parts in zip(sets, *streams, strict=True):
                mask = parts.pop()[0] if self.masks else None
                raw, windows = stacked([(part[0], part[1]) for part in parts])
                yield raw, windows, self._labels(rows, mask)

    def _labels(self, rows: CropIndices, mask: Tensor | None) -> Tensor:
        home = np.searchsorted(self.drawn.first_rows, rows, side="right") - 1
        painted = []
        for row, volume_index in zip(rows, home, strict=True):
            start = self.drawn.starts_zyx[volume_index][row - self.drawn.first_rows[volume_index]]
            painter = self.painters[volume_index]
            painted.append(painter.paint(start) if mask is None else painter.area(start))
        labels = torch.from_numpy(np.stack(painted)).to(self.device)
        if mask is not None:
            labels[(labels == BACKGROUND) & (mask > 0.5)] = CELL
        return labels
