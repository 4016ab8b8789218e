"""Uncompressed planes of a slab read strip by strip, with the checksums of their files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Num

from canvas_fm.data.volume.histogram import BLOCK_ZYX
from canvas_fm.data.volume.tiff.plane_bytes import PlaneBytes
from canvas_fm.files.checksum import Algorithm, new_digest
from canvas_fm.prepare.convert.layout import Layout

_FEWEST_ROWS = 256  # of a strip: fewer are more calls than work


class PlaneStrips:
    """Rows of planes, one strip after another from the first to the last, each byte read once.

    A slab takes memory that is filled, packed, averaged and counted after the caches have lost it; a strip
    takes a few times less, and its checksum comes of the bytes that were just read.
    """

    def __init__(self, planes: Sequence[PlaneBytes], algorithm: Algorithm | None) -> None:
        self._planes = planes
        self._digests = [None if algorithm is None else new_digest(algorithm) for _ in planes]

    def read(self, z: int, rows: Num[np.ndarray, "y x"], first: int) -> None:
        """Fill an array with rows of a plane, from `first` on."""
        self._planes[z].read_rows(rows, first, self._digests[z])

    def checksums(self) -> dict[Path, str]:
        """Checksums of the files that were read to their last row, where there is an algorithm."""
        read = zip(self._planes, self._digests, strict=True)
        return {plane.file: digest.hexdigest() for plane, digest in read if digest is not None}


def strip_rows(layout: Layout, threads: int) -> int:
    """Rows of a strip: whole shards and whole blocks of the histogram and the means, work for each thread."""
    level = layout.levels[0]
    across = math.ceil(level.shape_zyx[2] / level.shard_zyx[2])
    wanted = max(math.ceil(2 * threads / across) * level.shard_zyx[1], _FEWEST_ROWS)
    step = math.lcm(level.shard_zyx[1], BLOCK_ZYX[1])  # which is even, as means of two rows need it
    return math.ceil(wanted / step) * step
