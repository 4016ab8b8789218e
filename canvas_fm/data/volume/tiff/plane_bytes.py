"""Uncompressed planes: byte range of their voxels in a file, read by rows without the rest of the plane."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from jaxtyping import Num

from canvas_fm.data.volume.tiff.pages import count_planes, use_tiff
from canvas_fm.errors import DamagedStore
from canvas_fm.files.checksum import Digest


class PlaneBytes(NamedTuple):
    """A file that holds one plane as it is in memory: row after row, `swapped` in the other byte order than
    this machine's."""

    file: Path
    offset: int
    shape_yx: tuple[int, int]
    swapped: bool = False

    def read_rows(self, rows: Num[np.ndarray, "y x"], first: int, digest: Digest | None = None) -> None:
        """Fill an array with the rows from `first` on; DamagedStore where the file ends before.

        A digest that is given the rows of each call, from the first to the last, is that of the whole file:
        it is also given what lies before and after them.
        """
        row_bytes = rows.shape[1] * rows.itemsize
        flat: Any = rows.reshape(-1)  # numpy's types do not say that an array is a buffer
        into = memoryview(flat).cast("B")
        try:
            with self.file.open("rb", buffering=0) as file:
                if digest is not None and first == 0:
                    digest.update(_exactly(file, memoryview(bytearray(self.offset))))
                file.seek(self.offset + first * row_bytes)
                _exactly(file, into)
                if digest is not None:
                    digest.update(into)
                    if first + len(rows) == self.shape_yx[0]:
                        digest.update(file.readall())
                if self.swapped:
                    rows.byteswap(inplace=True)
        except (OSError, EOFError) as problem:
            cause = f"changed or could not be read while it was converted ({problem})"
            raise DamagedStore(
                self.file.parent, "planes", self.file.name, cause, "copy the file again"
            ) from problem


def plane_bytes(file: Path, shape_yx: tuple[int, int], dtype: np.dtype) -> PlaneBytes | None:
    """The bytes of a plane in a file of its own; None where it is compressed, of another shape or type, or
    cut short."""

    def about(tiff: tifffile.TiffFile) -> PlaneBytes | None:
        page, size = tiff.pages.first, tiff.filehandle.size
        native = page.bitspersample == 8 or (tiff.byteorder == "<") == (sys.byteorder == "little")
        alike = (page.shape, page.dtype) == (shape_yx, dtype)
        if not (alike and page.is_final and count_planes(tiff) == 1):
            return None
        whole = sum(page.databytecounts) == page.nbytes and page.dataoffsets[0] + page.nbytes <= size
        return PlaneBytes(file, page.dataoffsets[0], shape_yx, not native) if whole else None

    try:
        return use_tiff(file, about, alone=True)
    except DamagedStore:
        return None  # named where the plane is decoded


def _exactly(file: Any, into: memoryview) -> memoryview:
    """Fill a buffer, which the system may do in parts; EOFError where the file ends before."""
    filled = 0
    while filled < len(into):
        count = file.readinto(into[filled:])
        if not count:
            raise EOFError(f"it ends {len(into) - filled} bytes early")
        filled += count
    return into
