"""The stored levels of a volume as lazy dask arrays, for viewers that read what they show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Num

from canvas_fm.data.volume.array.array_like import as_dask, read_slice
from canvas_fm.data.volume.stored.channel import Channel
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import Zyx, ZyxLike, ZyxUm, whole_zyx

_MOST_TASKS = 100_000  # of one array: a viewer that slices a graph of millions stands still


def dask_levels(volume: Volume) -> list[Any]:
    """Level 0 and every coarser stored level as a dask array (z, y, x), fine to coarse.

    A task reads one chunk; of very large levels several side by side in y and x.
    """
    levels: list[Volume | Channel] = [volume, *volume.coarser()]
    return [as_dask(_StoredLevel(level)) for level in levels]


class _StoredLevel:
    """A stored level as `as_dask` reads it, its chunks joined where there are too many."""

    name: str = ""
    marker: str | None = None
    ndim = 3

    def __init__(self, source: Volume | Channel) -> None:
        self._source = source
        self.shape_zyx: Zyx = source.shape_zyx
        self.shape, self.dtype = source.shape_zyx, source.dtype
        self.voxel_um: ZyxUm = (1.0, 1.0, 1.0)  # which dask has no place for
        z, y, x = source.chunk_zyx
        while _tasks(self.shape, (z, y, x)) > _MOST_TASKS and (y < self.shape[1] or x < self.shape[2]):
            y, x = 2 * y, 2 * x
        self.chunk_zyx: Zyx = (z, y, x)

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> Num[np.ndarray, "z y x"]:
        start, size = whole_zyx(origin_zyx, "origin_zyx"), whole_zyx(size_zyx, "size_zyx")
        if isinstance(self._source, Volume):
            return self._source.read(start, size)
        return self._source.read(start, [a + n for a, n in zip(start, size, strict=True)])

    def __getitem__(self, key: Any) -> Num[np.ndarray, ...]:
        return read_slice(self, key)


def _tasks(shape: Zyx, chunk: Zyx) -> int:
    return math.prod(-(-n // size) for n, size in zip(shape, chunk, strict=True))
