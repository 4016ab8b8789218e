"""The bytes of a shard, and of a chunk by itself, packed on many threads.

zarr-python packs every chunk on one event loop, which a few cores outrun; the bytes here are those that it
reads: Blosc zstd-1 with byte shuffle and, in a shard, a crc32c for each chunk and for the index. What is
wholly zero is left out. Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
from jaxtyping import Num

from canvas_fm.data.store.compression import BLOCK_BYTES
from canvas_fm.data.zyx import Zyx
from canvas_fm.prepare.convert.shards.shard_files import aligned

_ABSENT = np.uint64(2**64 - 1)
_FRAME = 16  # bytes that a Blosc frame is longer at most than what it holds
_CRC = 4


class Packer:
    """Packs chunks and shards, for one thread at a time; what it returns holds until its next call.

    Its memory is used again and again: memory that is taken anew for every chunk can cost more than packing,
    where the system hands out pages slowly.
    """

    def __init__(self) -> None:
        self._chunk = np.empty(0, np.uint8)
        self._packed = aligned(0)

    def file(
        self, voxels: Num[np.ndarray, "z y x"], chunk_zyx: Zyx, shard_zyx: Zyx, *, sharded: bool
    ) -> memoryview | None:
        """The file of a shard, or of a chunk where each has one."""
        return self.shard(voxels, chunk_zyx, shard_zyx) if sharded else self.chunk(voxels, chunk_zyx)

    def chunk(self, voxels: Num[np.ndarray, "z y x"], chunk_zyx: Zyx) -> memoryview | None:
        """One Blosc frame of a chunk, filled up with zeros at the volume's border; None where all is zero."""
        size = self._pack(voxels, chunk_zyx, 0, math.prod(chunk_zyx) * voxels.dtype.itemsize + _FRAME)
        return self._packed[:size].data if size else None

    def shard(self, voxels: Num[np.ndarray, "z y x"], chunk_zyx: Zyx, shard_zyx: Zyx) -> memoryview | None:
        """The file of a shard: its chunks, then their offsets and lengths; None where all is zero."""
        grid = [s // c for s, c in zip(shard_zyx, chunk_zyx, strict=True)]
        index = np.full((math.prod(grid), 2), _ABSENT, "<u8")
        most = math.prod(chunk_zyx) * voxels.dtype.itemsize + _FRAME + _CRC
        room, end = most * len(index) + index.nbytes + _CRC, 0
        for number, place in enumerate(itertools.product(*map(range, grid))):
            box = tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, chunk_zyx, strict=True))
            size = self._pack(voxels[box], chunk_zyx, end, room)
            if size:
                index[number] = end, size + _CRC
                end = self._with_crc(end, end + size)
        if not end:
            return None
        self._packed[end : end + index.nbytes] = index.view(np.uint8).ravel()
        return self._packed[: self._with_crc(end, end + index.nbytes)].data

    def _pack(self, voxels: np.ndarray, chunk_zyx: Zyx, start: int, room: int) -> int:
        """Pack a chunk at `start` of the bytes; how many it takes, 0 where all is zero."""
        if not voxels.size:
            return 0
        if self._chunk.shape != chunk_zyx or self._chunk.dtype != voxels.dtype:
            self._chunk = np.empty(chunk_zyx, voxels.dtype)
        if voxels.shape == chunk_zyx:
            _rows(self._chunk)[:] = _rows(voxels)
        else:
            self._chunk[:] = 0
            self._chunk[tuple(slice(0, n) for n in voxels.shape)] = voxels
        if not (self._chunk[0, 0, 0] or self._chunk.any()):
            return 0
        if len(self._packed) < room:
            grown = aligned(room)
            grown[:start] = self._packed[:start]
            self._packed = grown
        chunk: Any = self._chunk  # imagecodecs takes every buffer, its types name a few
        room_left: Any = self._packed[start:]
        frame = imagecodecs.blosc_encode(
            chunk,
            level=1,
            compressor="zstd",
            shuffle="shuffle",
            typesize=voxels.dtype.itemsize,
            blocksize=BLOCK_BYTES,
            numthreads=1,
            out=room_left,
        )
        return len(frame)

    def _with_crc(self, start: int, stop: int) -> int:
        """Add the crc32c of some bytes behind them; where it ends."""
        crc = int(google_crc32c.value(self._packed[start:stop]))
        self._packed[stop : stop + _CRC] = np.frombuffer(crc.to_bytes(_CRC, "little"), np.uint8)
        return stop + _CRC


def _rows(voxels: Num[np.ndarray, "z y x"]) -> np.ndarray:
    """Each row of voxels as one element, which is copied at once; the voxels where rows are no rows."""
    if voxels.strides[2] != voxels.dtype.itemsize:
        return voxels
    return voxels.view(np.dtype((np.void, voxels.shape[2] * voxels.dtype.itemsize)))
