"""Tiles of the planes of registered volumes, cut from their pyramid, in a cache of bounded size."""

from __future__ import annotations

import math
import threading

import numpy as np
from jaxtyping import Num

from canvas_fm.data.volume.levels.pyramid import Level, open_pyramid
from canvas_fm.data.volume.volume import Volume
from canvas_fm.files.lru_cache import LruCache
from serving.protocol.errors import Refusal
from serving.protocol.request_options import TileQuery
from serving.protocol.schemas import LevelInfo, PyramidInfo

SIDE = 256  # voxels of a level, in y and x
_CACHE_BYTES = 128 << 20
_MOST_READ = 1 << 24  # voxels of a stored level that one tile of a computed one may take


class Tiles:
    """The pyramids of volumes by name, and their last tiles, 128 MB at most."""

    def __init__(self) -> None:
        self._cache: LruCache[tuple[object, ...], np.ndarray] = LruCache(
            _CACHE_BYTES, lambda tile: tile.nbytes
        )
        self._pyramids: dict[str, tuple[Volume, list[Level], tuple[int, int, int]]] = {}
        self._lock = threading.Lock()

    def about(self, name: str, volume: Volume) -> PyramidInfo:
        """The levels that tiles are cut from, and a bright place to begin at."""
        levels, start = self._opened(name, volume)
        infos = [LevelInfo(shape_zyx=each.shape_zyx, voxel_um=each.voxel_um) for each in levels]
        return PyramidInfo(volume=name, side=SIDE, levels=infos, start_zyx=start)

    def get(self, name: str, volume: Volume, query: TileQuery) -> Num[np.ndarray, "y x"]:
        """The voxels of a tile, smaller at the border; Refusal (404) for one that is not there."""
        levels, _ = self._opened(name, volume)
        if query.level >= len(levels):
            raise Refusal(404, f"the volume {name} has levels 0 to {len(levels) - 1}")
        level = levels[query.level]
        planes, high, wide = level.shape_zyx
        start = (query.z, query.row * SIDE, query.column * SIDE)
        if start[0] >= planes or start[1] >= high or start[2] >= wide:
            raise Refusal(404, f"level {query.level} has the shape {level.shape_zyx}; there is no such tile")
        key = (name, query.level, *start)
        if (tile := self._cache.get(key)) is None:
            stop = (start[0] + 1, min(start[1] + SIDE, high), min(start[2] + SIDE, wide))
            tile = level.read(start, stop)[0]
            self._cache.put(key, tile)
        return tile

    def _opened(self, name: str, volume: Volume) -> tuple[list[Level], tuple[int, int, int]]:
        with self._lock:
            known = self._pyramids.get(name)
        if known is None or known[0] is not volume:
            levels = _affordable(open_pyramid(volume, smallest=SIDE))
            known = (volume, levels, _bright_place(levels))
            with self._lock:
                self._pyramids[name] = known
        return known[1], known[2]


def _affordable(levels: list[Level]) -> list[Level]:
    """The levels whose tiles take no more than so many voxels of the coarsest stored one."""
    stored = [level for level in levels if level.stored]
    voxels = math.prod(stored[-1].shape_zyx)

    def taken(level: Level) -> float:
        share = math.prod(min(SIDE, size) for size in level.shape_zyx[1:]) / math.prod(level.shape_zyx)
        return voxels * share

    return [level for level in levels if level.stored or taken(level) <= _MOST_READ]


def _bright_place(levels: list[Level]) -> tuple[int, int, int]:
    """The brightest voxel of the coarsest level, in voxels of level 0; the centre where that is too large."""
    whole, coarse = levels[0].shape_zyx, levels[-1]
    if math.prod(coarse.shape_zyx) > _MOST_READ:
        z, y, x = (size // 2 for size in whole)
        return z, y, x
    voxels = np.nan_to_num(coarse.read((0, 0, 0), coarse.shape_zyx))
    place = np.unravel_index(int(voxels.argmax()), voxels.shape)
    z, y, x = (
        min(int((at + 0.5) * size / part), size - 1)
        for at, size, part in zip(place, whole, coarse.shape_zyx, strict=True)
    )
    return z, y, x


def shown(tile: Num[np.ndarray, "y x"], low: float, high: float) -> Num[np.ndarray, "y x"]:
    """Values in [0, 1] through a window; NaN is 0."""
    scaled = (tile.astype(np.float32) - np.float32(low)) * np.float32(1 / (high - low))
    return np.clip(np.nan_to_num(scaled), 0, 1)
