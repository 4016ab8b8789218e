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

import google_crc32c
import numpy as np
from jaxtyping import Num
from numcodecs import blosc

from canvas_fm.data.zyx import Zyx
from canvas_fm.files.atomic import disk_full_as_error

_ABSENT = np.uint64(2**64 - 1)


def pack_chunk(voxels: Num[np.ndarray, "z y x"], chunk_zyx: Zyx) -> bytes | None:
    """One Blosc frame of a chunk, filled up with zeros at the volume's border; None where all is zero."""
    if not voxels.any():
        return None
    if voxels.shape != chunk_zyx:
        whole = np.zeros(chunk_zyx, voxels.dtype)
        whole[tuple(slice(0, n) for n in voxels.shape)] = voxels
        voxels = whole
    packed: bytes = blosc.compress(np.ascontiguousarray(voxels), b"zstd", 1, blosc.SHUFFLE, 0)
    return packed


def pack_shard(voxels: Num[np.ndarray, "z y x"], chunk_zyx: Zyx, shard_zyx: Zyx) -> bytes | None:
    """The file of a shard: its chunks, then their offsets and lengths; None where all is zero."""
    grid = [s // c for s, c in zip(shard_zyx, chunk_zyx, strict=True)]
    index = np.full((math.prod(grid), 2), _ABSENT, "<u8")
    parts: list[bytes] = []
    offset = 0
    for number, place in enumerate(itertools.product(*map(range, grid))):
        box = tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, chunk_zyx, strict=True))
        chunk = voxels[box]
        packed = pack_chunk(chunk, chunk_zyx) if chunk.size else None
        if packed is None:
            continue
        index[number] = offset, len(packed) + 4
        parts += [packed, _crc32c(packed)]
        offset += len(packed) + 4
    if not parts:
        return None
    table = index.tobytes()
    return b"".join([*parts, table, _crc32c(table)])


def _crc32c(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(4, "little")


def write_flushed(path: Path, content: bytes) -> tuple[int, int]:
    """Write a file and flush it to the disk; its size and crc32, as the manifest has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_as_error(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return len(content), zlib.crc32(content)


def is_whole(root: Path, files: dict[str, Sequence[int]]) -> bool:
    """Whether files that were flushed before are there in their whole length."""
    try:
        return all((root / key).stat().st_size == size for key, (size, _) in files.items())
    except OSError:
        return False
