"""Histogram of sampled boxes of a volume and its percentiles: the intensity window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Num

_AT_ONCE = 1 << 15  # values that numpy makes 64-bit ones of to count them: no more than stay in the cache
BLOCK_ZYX = (32, 64, 64)  # the blocks that are left out where they hold nothing but the fill value


class Histogram:
    """Exact histogram of an 8- or 16-bit integer type, of blocks that hold more than the fill value."""

    def __init__(self, dtype: np.dtype, fill: float | np.generic) -> None:
        self.first = int(np.iinfo(dtype).min)
        self.fill = int(fill) - self.first if float(fill).is_integer() else -1
        self.counts = np.zeros(2 ** (8 * dtype.itemsize), np.int64)
        self.n = 0

    @staticmethod
    def fits(dtype: np.dtype) -> bool:
        """Whether the histogram of a type is small."""
        return dtype.kind in "iu" and dtype.itemsize <= 2

    def add(self, box: Num[np.ndarray, "z y x"]) -> int:
        """Count the voxels of a box; how many there were."""
        before = self.n
        for block in _blocks(box):
            values = block.ravel()
            if self.first:
                values = values.astype(np.int32) - self.first
            starts = range(0, len(values), _AT_ONCE)
            counts = [np.bincount(values[at : at + _AT_ONCE]) for at in starts]
            filled = sum(int(part[self.fill]) for part in counts if 0 <= self.fill < len(part))
            if filled == block.size:
                continue
            for part in counts:
                self.counts[: len(part)] += part
            self.n += block.size
        return self.n - before

    def percentiles(self, ranks: Sequence[float]) -> list[float]:
        """Percentiles of all that was added, as numpy defines them."""
        below = np.cumsum(self.counts)

        def value(k: int) -> float:
            return float(np.searchsorted(below, k, side="right") + self.first)

        return _interpolate(self.n, ranks, value)


class SampledValues:
    """The first `most` values themselves, for types whose histogram would not be exact."""

    def __init__(self, dtype: np.dtype, fill: float | np.generic, most: int) -> None:
        self.values = np.empty(most, dtype.newbyteorder("="))
        self.fill = fill
        self.n = 0

    def add(self, box: Num[np.ndarray, "z y x"]) -> int:
        """Keep the voxels of a box; how many of them."""
        before = self.n
        for block in _blocks(box):
            if (block != self.fill).any():
                kept = min(len(self.values) - self.n, block.size)
                self.values[self.n : self.n + kept] = block.ravel()[:kept]
                self.n += kept
        return self.n - before

    def percentiles(self, ranks: Sequence[float]) -> list[float]:
        """Percentiles of all that was kept, as numpy defines them."""
        values = self.values[: self.n]
        places = [rank / 100 * (self.n - 1) for rank in ranks]
        wanted_ranks = sorted({min(int(place) + more, self.n - 1) for place in places for more in (0, 1)})
        values.partition(wanted_ranks)
        return _interpolate(self.n, ranks, lambda k: float(values[k]))


class CountedBoxes:
    """A histogram of boxes that were in memory anyway, and how many voxels each of them added."""

    def __init__(self, dtype: np.dtype, fill: float | np.generic) -> None:
        self.histogram = Histogram(dtype, fill)
        self.voxels: dict[tuple[int, int, int], int] = {}

    def add(self, start_zyx: tuple[int, int, int], box: Num[np.ndarray, "z y x"]) -> None:
        """Count a box that begins there, or rows of it in whole blocks."""
        self.voxels[start_zyx] = self.voxels.get(start_zyx, 0) + self.histogram.add(box)


def _blocks(box: np.ndarray) -> Iterator[np.ndarray]:
    for z in range(0, box.shape[0], BLOCK_ZYX[0]):
        for y in range(0, box.shape[1], BLOCK_ZYX[1]):
            for x in range(0, box.shape[2], BLOCK_ZYX[2]):
                yield box[z : z + BLOCK_ZYX[0], y : y + BLOCK_ZYX[1], x : x + BLOCK_ZYX[2]]


def _interpolate(n: int, ranks: Sequence[float], value: Callable[[int], float]) -> list[float]:
    """Percentiles as numpy defines them: linear between the two nearest ranks."""
    percentiles = []
    for rank in ranks:
        place = rank / 100 * (n - 1)
        at = int(place)
        low, high = value(at), value(min(at + 1, n - 1))
        percentiles.append(low + (high - low) * (place - at))
    return percentiles
