"""Chunks of a store that is being written, decoded one by one without an event loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from jaxtyping import Num

from canvas_fm.prepare.convert.layout import Layout

_ENTRY, _CRC = 16, 4  # bytes of a chunk's offset and length in the index of a shard, and of a crc32c


class WrittenChunks:
    """Reads boxes of level 0, each inside one chunk; for samples of what was packed a moment ago."""

    def __init__(self, root: Path, layout: Layout, channel: int) -> None:
        self._root, self._layout, self._channel = root, layout, channel
        level = layout.levels[0]
        self._chunk_zyx, self._shard_zyx = level.chunk_zyx, level.shard_zyx
        self._voxels = np.empty(self._chunk_zyx, layout.dtype)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> Num[np.ndarray, "z y x"]:
        """A box, until the next call."""
        corner = [a - a % c for a, c in zip(start, self._chunk_zyx, strict=True)]
        assert all(b <= a + c for a, b, c in zip(corner, stop, self._chunk_zyx, strict=True))
        packed = self._packed(corner)
        if packed is None:
            self._voxels[:] = 0
        else:
            room: Any = self._voxels.view(np.uint8).reshape(-1)
            imagecodecs.blosc_decode(packed, numthreads=1, out=room)
        return self._voxels[tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, corner, strict=True))]

    def _packed(self, corner: Sequence[int]) -> bytes | None:
        """The Blosc frame of the chunk at a corner; None where it was left out, being zero."""
        z, y, x = (a // s for a, s in zip(corner, self._shard_zyx, strict=True))
        path = self._root / self._layout.key(0, self._channel, (z, y, x))
        if not path.exists():
            return None
        if self._layout.ome != "0.5":
            return path.read_bytes()
        sizes = list(zip(corner, self._shard_zyx, self._chunk_zyx, strict=True))
        grid = [s // c for _, s, c in sizes]
        number = int(np.ravel_multi_index([a % s // c for a, s, c in sizes], grid))
        with path.open("rb") as file:
            file.seek(number * _ENTRY - math.prod(grid) * _ENTRY - _CRC, 2)
            offset, length = (int(n) for n in np.frombuffer(file.read(_ENTRY), "<u8"))
            if offset == 2**64 - 1:
                return None
            file.seek(offset)
            return file.read(length - _CRC)
