"""Corrections of tiles before they are blended: shading and stripes are those of a tile."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import Zyx, ZyxLike, whole_zyx
from canvas_fm.errors import CanvasError
from canvas_fm.prepare.convert_flags import StitchOptions
from canvas_fm.prepare.corrections.corrections import Correction
from canvas_fm.prepare.corrections.sample_planes import corrections_of
from canvas_fm.prepare.sources.source import Source
from canvas_fm.prepare.stitch.tiles import Tile

_MEMORY_SHARE = 0.3  # of the memory, for planes that are being corrected
NONE: dict[str, Any] = {"flat_field": False, "flat": None, "dark": None, "destripe": False}


class TileStack:
    """All planes of all tiles, one tile after the other, as a channel from which planes are sampled."""

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self._volumes = [tile.volume for tile in tiles]
        first = self._volumes[0].shape_zyx[1:]
        for tile in tiles:
            if tile.volume.shape_zyx[1:] != first:
                raise CanvasError(
                    f"tile {tile.name} has planes of {tile.volume.shape_zyx[1:]}, others of {first}; "
                    "--flat-field and --destripe need tiles of one size"
                )
        self._ends = np.cumsum([volume.shape_zyx[0] for volume in self._volumes])
        self.shape_zyx: Zyx = (int(self._ends[-1]), *first)
        self.chunk_zyx: Zyx = (1, *first)
        self.dtype = self._volumes[0].dtype

    @property
    def bad_chunks(self) -> list[str]:
        return [sentence for volume in self._volumes for sentence in volume.bad_chunks]

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> Num[np.ndarray, "z y x"]:
        """A box of one plane."""
        z, y, x = whole_zyx(origin_zyx, "origin_zyx")
        at = int(np.searchsorted(self._ends, z, side="right"))
        volume = self._volumes[at]
        return volume.read((z - int(self._ends[at]) + volume.shape_zyx[0], y, x), size_zyx)

    def read_into(self, box: Num[np.ndarray, "z y x"], origin_zyx: ZyxLike) -> None:
        """The same into an array."""
        box[:] = self.read(origin_zyx, box.shape)


class CorrectedPlanes:
    """Planes of tiles after the correction of all of them; so many at a time as the memory holds."""

    def __init__(self, correction: Correction, plane_yx: Sequence[int], memory_gb: float) -> None:
        self.correction = correction
        each = 4.0 * plane_yx[0] * plane_yx[1] * max(correction.memory_planes, 1)
        self._at_once = threading.BoundedSemaphore(max(1, int(memory_gb * 1e9 * _MEMORY_SHARE / each)))

    def read(self, volume: Volume, origin: Zyx, size: Zyx) -> Num[np.ndarray, "y x"]:
        """A part of one plane of a tile."""
        if not self.correction.is_there:
            return volume.read(origin, size)[0]
        z, y, x = origin
        with self._at_once:
            plane = self.correction.apply(volume.read((z, 0, 0), (1, *volume.shape_zyx[1:]))[0])
        return plane[y : y + size[1], x : x + size[2]]


def correct_tiles(
    path: Path, tiles: Sequence[Tile], options: StitchOptions
) -> tuple[Source, CorrectedPlanes]:
    """The stack of all tiles, and the correction that was learned from planes sampled from it."""
    corrected = options.flat_field or options.flat is not None or options.destripe
    first = tiles[0].volume
    stack = TileStack(tiles if corrected else tiles[:1])
    source = Source(path, [stack], ["tiles"], [first.marker], first.voxel_um, [])
    correction = corrections_of(source, options)[0] if corrected else Correction()
    return source, CorrectedPlanes(correction, first.shape_zyx[1:], options.memory_gb)
