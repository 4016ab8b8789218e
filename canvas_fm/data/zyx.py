"""Validation of positions and sizes: three numbers in the order z, y, x."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex

import numpy as np

from canvas_fm.errors import CanvasError

Zyx = tuple[int, int, int]
ZyxUm = tuple[float, float, float]
ZyxLike = Sequence[SupportsIndex] | np.ndarray
ZyxUmLike = Sequence[SupportsFloat] | np.ndarray


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


def stop_inside(start: Zyx, size: tuple[int, ...], shape_zyx: Zyx, name: object) -> list[int]:
    """End of a box; CanvasError if it leaves the volume."""
    stop = [a + n for a, n in zip(start, size, strict=True)]
    if min(start) < 0 or any(b > n for b, n in zip(stop, shape_zyx, strict=True)):
        raise CanvasError(f"a box of {size} at {start} leaves {name} of shape {shape_zyx}")
    return stop
