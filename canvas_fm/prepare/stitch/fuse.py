"""Placed tiles as one channel: blended where they overlap, read plane by plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Num

from canvas_fm.data.zyx import Zyx, ZyxLike, whole_zyx
from canvas_fm.prepare.corrections.corrections import Correction
from canvas_fm.prepare.stitch.corrections import CorrectedPlanes
from canvas_fm.prepare.stitch.tiles import Tile

_ROWS = 256  # that are blended at once


class FusedTiles:
    """Tiles at whole voxels; a weight falls linearly to the border of a tile, along y and along x.

    Of a plane every tile's is decoded once, and rows are blended some at a time: beside the result a read
    holds the voxels that it is made from, in their own type. What no tile covers is zero.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        positions_zyx: Sequence[Zyx],
        ramp: int,
        corrected: CorrectedPlanes | None = None,
    ) -> None:
        low = np.min(positions_zyx, axis=0)
        self._tiles = [tile.volume for tile in tiles]
        self._at = [tuple(int(n) for n in np.subtract(place, low)) for place in positions_zyx]
        stops = [np.add(at, volume.shape_zyx) for at, volume in zip(self._at, self._tiles, strict=True)]
        self.shape_zyx: Zyx = whole_zyx(np.max(stops, axis=0).tolist(), "shape")
        self.chunk_zyx: Zyx = (1, *self.shape_zyx[1:])
        self.dtype = self._tiles[0].dtype
        self._ramp = max(1, ramp)
        self._corrected = corrected or CorrectedPlanes(Correction(), self._tiles[0].shape_zyx[1:], 1.0)

    @property
    def bad_chunks(self) -> list[str]:
        """Damage of all tiles that was read as zeros."""
        return [sentence for volume in self._tiles for sentence in volume.bad_chunks]

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> Num[np.ndarray, "z y x"]:
        """A box that lies inside."""
        box = np.empty(whole_zyx(size_zyx, "size_zyx"), self.dtype)
        self.read_into(box, origin_zyx)
        return box

    def read_into(self, box: Num[np.ndarray, "z y x"], origin_zyx: ZyxLike) -> None:
        """The same into an array."""
        origin = whole_zyx(origin_zyx, "origin_zyx")
        for z in range(len(box)):
            self._plane(box[z], (origin[0] + z, *origin[1:]))

    def _plane(self, plane: np.ndarray, origin: Zyx) -> None:
        parts = []
        for volume, at in zip(self._tiles, self._at, strict=True):
            if not at[0] <= origin[0] < at[0] + volume.shape_zyx[0]:
                continue
            low = [max(o - a, 0) for o, a in zip(origin[1:], at[1:], strict=True)]
            high = [
                min(o + n - a, s)
                for o, n, a, s in zip(origin[1:], plane.shape, at[1:], volume.shape_zyx[1:], strict=True)
            ]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            size = (1, high[0] - low[0], high[1] - low[1])
            voxels = self._corrected.read(volume, (origin[0] - at[0], low[0], low[1]), size)
            weights = [self._weights(n)[a:b] for a, b, n in zip(low, high, volume.shape_zyx[1:], strict=True)]
            parts.append((low[0] + at[1] - origin[1], low[1] + at[2] - origin[2], voxels, weights))
        for y in range(0, len(plane), _ROWS):
            band = plane[y : y + _ROWS]
            total, weight = np.zeros(band.shape, np.float32), np.zeros(band.shape, np.float32)
            for top, left, voxels, (along_y, along_x) in parts:
                a, b = max(y, top), min(y + len(band), top + len(voxels))
                if a >= b:
                    continue
                w = along_y[a - top : b - top, None] * along_x
                place = np.s_[a - y : b - y, left : left + voxels.shape[1]]
                total[place] += w * voxels[a - top : b - top]
                weight[place] += w
            np.divide(total, weight, out=total, where=weight > 0)
            band[:] = total if plane.dtype.kind == "f" else np.rint(total)

    def _weights(self, length: int) -> Float32[np.ndarray, " n"]:
        at = np.arange(length, dtype=np.float32)
        return np.minimum(np.minimum(at, length - 1 - at) + 1, self._ramp) / np.float32(self._ramp)
