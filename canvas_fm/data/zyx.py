"""Validation of positions, sizes and voxel sizes: three numbers in the order z, y, x."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Protocol, SupportsFloat, SupportsIndex

import numpy as np

from canvas_fm.errors import CanvasError, ModelMismatch

Zyx = tuple[int, int, int]
ZyxUm = tuple[float, float, float]
ZyxLike = Sequence[SupportsIndex] | np.ndarray
ZyxUmLike = Sequence[SupportsFloat] | np.ndarray
VOXEL_TOLERANCE = 0.05  # by which a volume's voxels may differ from a model's on each axis


class HasVoxelSize(Protocol):
    """Protocol of a volume: its name and voxel size."""

    name: str
    voxel_um: ZyxUm


def whole_zyx(values: ZyxLike, name: str) -> Zyx:
    """Validate three whole numbers; CanvasError names the argument."""
    try:
        z, y, x = (operator.index(value) for value in values)
    except (TypeError, ValueError) as problem:
        raise CanvasError(f"{name} is {values!r}; expected three whole numbers: z, y, x") from problem
    return z, y, x


def check_voxel_um(sizes: ZyxUmLike) -> ZyxUm:
    """Validate three positive lengths in micrometres."""
    try:
        if isinstance(sizes, str | bytes) or any(isinstance(size, bool) for size in sizes):
            raise ValueError("a text, or true and false, which would pass for 1 and 0")
        z, y, x = (float(size) for size in sizes)
    except (TypeError, ValueError, OverflowError) as problem:
        raise CanvasError(f"voxel_um is {sizes!r}; expected three lengths in micrometres: z y x") from problem
    if not all(math.isfinite(size) and size > 0 for size in (z, y, x)):
        raise CanvasError(f"voxel_um is {(z, y, x)}; expected three positive lengths in micrometres: z y x")
    return z, y, x


def match_voxel_um(
    volume: HasVoxelSize, model_voxel_um: ZyxUm, *, resample: bool = False, ignore_voxel_size: bool = False
) -> ZyxUm | None:
    """Voxel size (µm, z, y, x) that crops are resampled to for a model, None if they are read as they are.

    Within 5 % of the model's size on every axis crops are always read as they are. Beyond, raises
    ModelMismatch unless the caller asks for `resample` or `ignore_voxel_size` (take the voxels as they are).
    """
    if resample and ignore_voxel_size:
        raise CanvasError("--resample and --ignore-voxel-size exclude each other: give one of them")
    model = np.asarray(model_voxel_um, dtype=np.float64)
    off = np.abs(np.asarray(volume.voxel_um) - model) / model
    if off.max() <= VOXEL_TOLERANCE * (1 + 1e-9) or ignore_voxel_size:
        return None
    if resample:
        z, y, x = model.tolist()
        return z, y, x
    theirs, ours = (" × ".join(f"{size:g}" for size in um) for um in (volume.voxel_um, model_voxel_um))
    raise ModelMismatch(
        f"{volume.name} has voxels of {theirs} µm (z × y × x), the model was trained at {ours} µm: give "
        "--resample to read crops at the model's physical size, or --ignore-voxel-size to use the voxels as "
        "they are"
    )


def stop_inside(start: Zyx, size: tuple[int, ...], shape_zyx: Zyx, name: object) -> list[int]:
    """End of a box; CanvasError if it leaves the volume."""
    stop = [a + n for a, n in zip(start, size, strict=True)]
    if min(start) < 0 or any(b > n for b, n in zip(stop, shape_zyx, strict=True)):
        raise CanvasError(f"a box of {size} at {start} leaves {name} of shape {shape_zyx}")
    return stop
