"""The spatial index of many points: level by level a random part of each cell, finer cells for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, Integer

LIMIT = 5_000  # points of a cell, about: what a viewer fetches at once
_MOST_LEVELS = 9
_MOST_CELLS = 1 << 22
# Points are often made with seed 0 too: without a key of its own the sample would follow their first column.
_KEY = 0x1E7E15


@dataclass(frozen=True)
class SpatialLevel:
    """Points of one level, cell after cell and inside a cell in random order.

    `cells` has the grid positions of the cells that hold points, `counts` how many; `rows` are the points.
    """

    grid_shape: tuple[int, int, int]
    chunk_size: tuple[float, float, float]
    cells: Integer[np.ndarray, "cells 3"]
    counts: Integer[np.ndarray, " cells"]
    rows: Int64[np.ndarray, " n"]

    @property
    def limit(self) -> int:
        """Points of the fullest cell."""
        return int(self.counts.max(initial=1))


def spatial_levels(
    positions: Float32[np.ndarray, "n 3"],
    lower: Float32[np.ndarray, " 3"],
    upper: Float32[np.ndarray, " 3"],
    voxel_um: tuple[float, float, float],
    *,
    limit: int = LIMIT,
) -> Iterator[SpatialLevel]:
    """Every point in exactly one level, the first a thin sample of all; axes in the order of `positions`.

    All cells of a level keep the same share, so that no density is distorted. Cells are halved along the axes
    on which they are longest in µm. Points beyond the last level's limit (many at one place) stay in it.
    """
    draws = np.random.default_rng([_KEY, 0]).random(len(positions), np.float32)
    left = np.arange(len(positions))
    grid = np.ones(3, np.int64)
    extent = (upper - lower).astype(np.float64)
    below = 0.0  # draws below it are taken
    for number in range(_MOST_LEVELS):
        chunk = extent / grid
        cell = _cells(positions[left], lower, chunk, grid)
        fullest = int(np.bincount(cell, minlength=1).max())
        is_last = number == _MOST_LEVELS - 1 or int(np.prod(grid)) * 8 > _MOST_CELLS
        below = 1.1 if fullest <= limit or is_last else below + (1 - below) * limit / fullest
        taken = draws[left] < below
        yield _level(left[taken], cell[taken], draws, grid, chunk)
        left = left[~taken]
        if not len(left):
            return
        size_um = chunk * np.asarray(voxel_um)
        grid = np.where(size_um > 0.501 * size_um.max(), 2 * grid, grid)


def _cells(positions: np.ndarray, lower: np.ndarray, chunk: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The number of each point's cell, the first axis fastest."""
    number = np.zeros(len(positions), np.int64)
    for axis in (2, 1, 0):
        place = ((positions[:, axis] - lower[axis]) * np.float32(1 / chunk[axis])).astype(np.int64)
        number = number * grid[axis] + np.clip(place, 0, grid[axis] - 1)
    return number


def _level(
    rows: np.ndarray, cell: np.ndarray, draws: np.ndarray, grid: np.ndarray, chunk: np.ndarray
) -> SpatialLevel:
    order = np.argsort(cell + draws[rows].astype(np.float64))  # by cell, inside it at random
    cell = cell[order]
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    numbers = cell[first]
    cells = np.stack(np.unravel_index(numbers, grid[::-1]), axis=1)[:, ::-1]
    counts = np.diff(first, append=len(cell))
    x, y, z = (int(size) for size in grid)
    a, b, c = (float(size) for size in chunk)
    return SpatialLevel((x, y, z), (a, b, c), cells, counts, rows[order])
