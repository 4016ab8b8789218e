"""The bytes of a shard, and of a chunk by itself, packed on many threads.

zarr-python packs every chunk on one event loop, which a few cores outrun; the bytes here are those that it
reads: Blosc zstd-1 with byte shuffle and, in a shard, a crc32c for each chunk and for the index. What is
wholly zero is left out. Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed.
"""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
from jaxtyping import Num

from canvas_fm.data.zyx import Zyx
from canvas_fm.files.atomic import disk_full_as_error

_ABSENT = np.uint64(2**64 - 1)
_FRAME = 16  # bytes that a Blosc frame is longer at most than what it holds
_CRC = 4


class Packer:
    """Packs chunks and shards, one packer for each thread; what it returns holds until its next call.

    Its memory is used again and again: memory that is taken anew for every chunk can cost more than packing,
    where the system hands out pages slowly.
    """

    def __init__(self) -> None:
        self._chunk = np.empty(0, np.uint8)
        self._packed = np.empty(0, np.uint8)

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
        if voxels.shape != chunk_zyx:
            self._chunk[:] = 0
        self._chunk[tuple(slice(0, n) for n in voxels.shape)] = voxels
        if not self._chunk.any():
            return 0
        if len(self._packed) < room:
            self._packed = np.concatenate([self._packed[:start], np.empty(room - start, np.uint8)])
        chunk: Any = self._chunk  # imagecodecs takes every buffer, its types name a few
        room_left: Any = self._packed[start:]
        frame = imagecodecs.blosc_encode(
            chunk,
            level=1,
            compressor="zstd",
            shuffle="shuffle",
            typesize=voxels.dtype.itemsize,
            numthreads=1,
            out=room_left,
        )
        return len(frame)

    def _with_crc(self, start: int, stop: int) -> int:
        """Add the crc32c of some bytes behind them; where it ends."""
        crc = int(google_crc32c.value(self._packed[start:stop]))
        self._packed[stop : stop + _CRC] = np.frombuffer(crc.to_bytes(_CRC, "little"), np.uint8)
        return stop + _CRC


def write_file(path: Path, content: memoryview) -> tuple[int, int]:
    """Write a file, not yet flushed; its size and crc32, as the manifest has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_as_error(path), path.open("wb", buffering=0) as file:
        written = 0
        while written < len(content):
            written += file.write(content[written:])
    return len(content), zlib.crc32(content)


def flush(path: Path) -> None:
    """Flush a written file to the disk."""
    with disk_full_as_error(path), path.open("rb") as file:
        os.fsync(file.fileno())


def is_whole(root: Path, files: dict[str, Sequence[int]]) -> bool:
    """Whether files that were flushed before are there in their whole length."""
    try:
        return all((root / key).stat().st_size == size for key, (size, _) in files.items())
    except OSError:
        return False
