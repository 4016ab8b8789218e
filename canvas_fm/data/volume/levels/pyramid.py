"""A volume's levels from fine to coarse: the stored ones, else means of blocks, made on reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from canvas_fm.data.volume.levels.downsample import mean_down, mode_down
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.writer import plan_levels
from canvas_fm.data.zyx import Zyx, ZyxUm

SMALLEST = 64  # voxels: a level whose longest axis is no longer is the last
_READ = 1 << 24  # voxels of the finer level that are held at once
Read = Callable[[Sequence[int], Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Level:
    """One level of a pyramid; `read(start, stop)` is a box z, y, x that lies inside it.

    `stored` is false for levels that are computed from finer ones.
    """

    shape_zyx: Zyx
    voxel_um: ZyxUm
    read: Read
    stored: bool


def open_pyramid(volume: Volume, *, labels: bool = False, smallest: int = SMALLEST) -> list[Level]:
    """The volume itself and its coarser levels, down to one of at most `smallest` voxels along each axis.

    Levels that the store lacks are computed: means of blocks, of `labels` the most frequent one. A computed
    level reads the finer one anew for each box, in pieces of at most 16 M voxels.
    """
    levels = [Level(volume.shape_zyx, volume.voxel_um, _reader(volume), True)]
    for source in volume.coarser():
        sizes = zip(volume.voxel_um, volume.shape_zyx, source.shape_zyx, strict=True)
        z, y, x = (size * _factor(fine, coarse) for size, fine, coarse in sizes)
        levels.append(Level(source.shape_zyx, (z, y, x), source.read, True))
    while max(levels[-1].shape_zyx) > smallest:
        finer = levels[-1]
        planned = plan_levels(finer.shape_zyx, finer.voxel_um, 2)
        shape, voxel_um, factor = planned[-1]
        levels.append(Level(shape, voxel_um, _Blocks(finer, factor, labels).read, False))
    return levels


def _reader(volume: Volume) -> Read:
    def read(start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        return volume.read(start, [b - a for a, b in zip(start, stop, strict=True)])

    return read


def _factor(fine: int, coarse: int) -> float:
    """Downsampling factor of a level on an axis: a power of two where the sizes fit one, as borders round."""
    power = round(math.log2(fine / coarse))
    return 2.0**power if abs(fine / 2**power - coarse) <= 1 else fine / coarse


@dataclass(frozen=True)
class _Blocks:
    """Means, or modes, of blocks of a finer level."""

    finer: Level
    factor: Zyx
    labels: bool

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        size = [b - a for a, b in zip(start, stop, strict=True)]
        if math.prod(size) * math.prod(self.factor) > _READ and max(size) > 1:
            axis = size.index(max(size))
            middle = start[axis] + size[axis] // 2
            first = self.read(start, [middle if at == axis else b for at, b in enumerate(stop)])
            second = self.read([middle if at == axis else a for at, a in enumerate(start)], stop)
            return np.concatenate([first, second], axis=axis)
        low = [a * f for a, f in zip(start, self.factor, strict=True)]
        high = [min(b * f, n) for b, f, n in zip(stop, self.factor, self.finer.shape_zyx, strict=True)]
        voxels = np.ascontiguousarray(self.finer.read(low, high))
        return (mode_down if self.labels else mean_down)(voxels, self.factor)
