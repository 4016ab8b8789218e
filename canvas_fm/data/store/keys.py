"""Keys of a store's files, and file stamps."""

from __future__ import annotations

from typing import NamedTuple

METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


class Stamp(NamedTuple):
    """Size and time or version of a file: tells versions apart without reading it."""

    size: int
    mtime_ns: int
    identity: tuple[int, ...] = ()


def split_key(key: str) -> tuple[str, str]:
    """Array path and remaining key of a file: `0/c/1/2/3` is chunk `c/1/2/3` of array `0`."""
    parts = key.split("/")
    for at, part in enumerate(parts):
        if part == "c" or part.startswith("c."):
            return "/".join(parts[:at]), "/".join(parts[at:])
    return "/".join(parts[:-1]), parts[-1]
