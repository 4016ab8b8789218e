"""Points on a regular grid, to embed a whole volume without a detector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int

from canvas_fm.data.crops.crop_positions import grid_starts
from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume, Zyx
from canvas_fm.data.zyx import match_voxel_um

if TYPE_CHECKING:
    from canvas_fm.models.load_model import ModelConfig


def grid_points(
    volume: Volume,
    config: ModelConfig,
    step_zyx: Zyx,
    *,
    resample: bool = False,
    ignore_voxel_size: bool = False,
) -> Points:
    """Centres (n, 3) of crops that tile the volume with a step in voxels, in z, y, x order.

    Every crop lies wholly inside the volume. Raises CanvasError where a crop is larger than the volume, and
    ModelMismatch as `match_voxel_um` does.
    """
    to_um = match_voxel_um(volume, config.voxel_um, resample=resample, ignore_voxel_size=ignore_voxel_size)
    reader = CropReader(volume, config.architecture.crop_zyx, resample_to_um=to_um)
    starts = grid_starts(volume.shape_zyx, reader.box_zyx, step_zyx)
    return Points(box_centres(starts, reader), meta={"grid_step_zyx": " ".join(map(str, step_zyx))})


def box_centres(starts_zyx: Int[np.ndarray, "n 3"], reader: CropReader) -> Float64[np.ndarray, "n 3"]:
    """Points whose boxes start at the given voxels."""
    offset = reader.resampler.offset_zyx if reader.resampler else [-(size // 2) for size in reader.box_zyx]
    return (starts_zyx - np.asarray(offset)).astype(np.float64)
