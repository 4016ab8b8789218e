"""Positions and sizes: always three numbers in the order z, y, x, and refused as anything else."""

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


def whole_zyx(given: ZyxLike, name: str) -> Zyx:
    """Three whole numbers; CanvasError, naming the argument, for anything else."""
    try:
        z, y, x = (operator.index(value) for value in given)
    except (TypeError, ValueError) as problem:
        raise CanvasError(f"{name} is {given!r}; expected three whole numbers: z, y, x") from problem
    return z, y, x


def check_voxel_um(given: ZyxUmLike) -> ZyxUm:
    """Three positive lengths in micrometres; CanvasError for anything else."""
    try:
        z, y, x = (float(value) for value in given)
    except (TypeError, ValueError) as problem:
        raise CanvasError(f"voxel_um is {given!r}; expected three lengths in micrometres: z y x") from problem
    if not all(math.isfinite(size) and size > 0 for size in (z, y, x)):
        raise CanvasError(f"voxel_um is {(z, y, x)}; expected three positive lengths in micrometres: z y x")
    return z, y, x
