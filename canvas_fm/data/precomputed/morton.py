"""Compressed Morton codes: the cells of a grid in an order in which near cells have near numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt64


def morton_codes(cells: Integer[np.ndarray, "n axes"], grid: Sequence[int]) -> UInt64[np.ndarray, " n"]:
    """The code of each cell: bit by bit from the lowest, of every axis whose size still has that bit."""
    codes = np.zeros(len(cells), np.uint64)
    for place, (axis, bit) in enumerate(_bits(grid)):
        codes |= ((cells[:, axis].astype(np.uint64) >> np.uint64(bit)) & np.uint64(1)) << np.uint64(place)
    return codes


def morton_cells(codes: UInt64[np.ndarray, " n"], grid: Sequence[int]) -> Integer[np.ndarray, "n axes"]:
    """The cell of each code; some lie outside a grid whose sizes are no powers of two."""
    cells = np.zeros((len(codes), len(grid)), np.int64)
    for place, (axis, bit) in enumerate(_bits(grid)):
        cells[:, axis] |= (((codes >> np.uint64(place)) & np.uint64(1)) << np.uint64(bit)).astype(np.int64)
    return cells


def morton_bits(grid: Sequence[int]) -> int:
    """Bits of the largest code."""
    return len(_bits(grid))


def _bits(grid: Sequence[int]) -> list[tuple[int, int]]:
    """Axis and bit at each place of the code, from the lowest."""
    most = max(int(size - 1).bit_length() for size in grid)
    return [(axis, bit) for bit in range(most) for axis, size in enumerate(grid) if (int(size) - 1) >> bit]
