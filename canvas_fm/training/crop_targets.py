"""Positions and targets of the crops of a torch data set: from points, or drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from canvas_fm.data.crops.crop_positions import draw_starts
from canvas_fm.data.crops.reader import crop_starts
from canvas_fm.data.dataset.unique_names import check_one_each
from canvas_fm.data.points.points import Points, check_inside
from canvas_fm.data.volume.levels.resample import Resampler
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import Zyx, ZyxUm
from canvas_fm.errors import CanvasError


@dataclass(frozen=True)
class RandomCrops:
    """Sampler of `n` random crops in each volume, a share `foreground` of them on signal; see `seed`."""

    n: int
    foreground: float = 0.5
    seed: int = 0

    def starts(self, volume: Volume, box_zyx: Zyx, index: int) -> Int64[np.ndarray, "n 3"]:
        """First voxels of the crops of the volume number `index`."""
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        return draw_starts(volume, box_zyx, self.n, foreground=self.foreground, seed=seed)


def starts_and_targets(
    volumes: Sequence[Volume],
    points: Any,
    crop_zyx: Zyx,
    resample_to: Sequence[ZyxUm | None],
    target: str | None,
) -> tuple[list[Int64[np.ndarray, "_ 3"]], Shaped[np.ndarray, " n"]]:
    """First voxels of the crops of each volume, and the target of every crop; see `CropDataset`."""
    if isinstance(points, RandomCrops):
        if target is not None:
            raise CanvasError("random crops have no columns; give points to have a target")
        starts = []
        for number, (volume, um) in enumerate(zip(volumes, resample_to, strict=True)):
            box = crop_zyx if um is None else Resampler(crop_zyx, volume.voxel_um, um).box_zyx
            starts.append(points.starts(volume, box, number))
        return starts, np.arange(sum(map(len, starts)))
    check_one_each(volumes, {"points": points})
    each = [table if isinstance(table, Points) else Points(table) for table in points]
    starts = []
    for volume, table, um in zip(volumes, each, resample_to, strict=True):
        check_inside(table.zyx, volume.shape_zyx)
        starts.append(_starts(table.zyx, volume, crop_zyx, um))
    if target is None:
        return starts, np.arange(sum(map(len, starts)))
    for volume, table in zip(volumes, each, strict=True):
        if target not in table.columns:
            columns = ", ".join(table.columns) or "none"
            raise CanvasError(f"the points of {volume.name} have no column {target!r}; they have: {columns}")
    return starts, np.concatenate([table.columns[target] for table in each])


def _starts(zyx: np.ndarray, volume: Volume, crop_zyx: Zyx, um: ZyxUm | None) -> Int64[np.ndarray, "n 3"]:
    if um is None:
        return crop_starts(zyx, crop_zyx)
    return crop_starts(zyx, (1, 1, 1)) + np.asarray(Resampler(crop_zyx, volume.voxel_um, um).offset_zyx)
