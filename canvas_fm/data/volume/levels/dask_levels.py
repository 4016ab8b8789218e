"""The stored levels of a volume as lazy dask arrays, for viewers that read what they show."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    levels: list[Any] = [_Boxes(volume, volume.shape_zyx, volume.chunk_zyx)]
    levels += [_Boxes(level, level.shape_zyx, level.chunk_zyx) for level in volume.coarser()]
    return [as_dask(level) for level in levels]


@dataclass(frozen=True)
class _Boxes:
    """A stored level, with chunks joined where there are too many, as `as_dask` reads it."""

    source: Volume | Channel
    shape_zyx: Zyx
    stored_chunk_zyx: Zyx
    name: str = ""
    marker: str | None = None
    voxel_um: ZyxUm = (1.0, 1.0, 1.0)
    ndim: int = 3

    @property
    def shape(self) -> Zyx:
        return self.shape_zyx

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    @property
    def chunk_zyx(self) -> Zyx:
        z, y, x = self.stored_chunk_zyx
        while math.prod(-(-n // c) for n, c in zip(self.shape_zyx, (z, y, x), strict=True)) > _MOST_TASKS:
            y, x = 2 * y, 2 * x
        return z, y, x

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> Num[np.ndarray, "z y x"]:
        start, size = whole_zyx(origin_zyx, "origin_zyx"), whole_zyx(size_zyx, "size_zyx")
        if isinstance(self.source, Volume):
            return self.source.read(start, size)
        return self.source.read(start, [a + n for a, n in zip(start, size, strict=True)])

    def __getitem__(self, key: Any) -> Num[np.ndarray, ...]:
        return read_slice(self, key)
