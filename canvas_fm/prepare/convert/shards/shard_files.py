"""Files of a store that is being written: past the system's cache, flushed, with size and crc32."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from jaxtyping import UInt8

from canvas_fm.files.atomic import disk_full_as_error

_PAGE = 4096  # bytes: what is written past the cache begins and ends at multiples of it


def aligned(size: int) -> UInt8[np.ndarray, " n"]:
    """Memory that can be written past the system's cache."""
    room = np.empty(size + _PAGE, np.uint8)
    start = -room.ctypes.data % _PAGE
    return room[start : start + size]


def write_file(path: Path, content: memoryview) -> tuple[int, int]:
    """Write a file and flush it to the disk; its size and crc32, as the manifest has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_as_error(path), path.open("wb", buffering=0) as file:
        written = _past_cache(file.fileno(), content[: len(content) // _PAGE * _PAGE])
        while written < len(content):
            written += file.write(content[written:])
        os.fsync(file.fileno())
    buffer: Any = content  # imagecodecs takes every buffer, its types name a few
    return len(content), int(imagecodecs.deflate_crc32(buffer))  # zlib's value, several times as fast


def _past_cache(handle: int, pages: memoryview) -> int:
    """Write whole pages without the system's cache; how many bytes, 0 where the file system has no such way.

    A brain is larger than the cache, and taking a page of it for each that is written can cost more than
    packing does.
    """
    written = 0
    if not hasattr(os, "O_DIRECT"):
        return written
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags | os.O_DIRECT)
        while written < len(pages):
            written += os.write(handle, pages[written:])
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
    finally:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags)
    return written


def is_whole(root: Path, files: dict[str, Sequence[int]]) -> bool:
    """Whether files that were flushed before are there in their whole length."""
    try:
        return all((root / key).stat().st_size == size for key, (size, _) in files.items())
    except OSError:
        return False
