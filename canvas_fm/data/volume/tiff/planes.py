"""TIFF volumes: planes along z, decoded where a box intersects them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from canvas_fm.data.store.checked_store import BadChunks
from canvas_fm.data.store.tar_index import in_tar, on_disk
from canvas_fm.data.volume.tiff.pages import count_planes, page_of, use_tiff
from canvas_fm.data.volume.tiff.parsed_files import ParsedFiles
from canvas_fm.data.volume.tiff.plane_bytes import PlaneBytes, plane_bytes
from canvas_fm.data.volume.tiff.stack import Stack, find_stack
from canvas_fm.errors import CanvasError, DamagedStore, counted

_log = logging.getLogger(__name__)


def open_planes(
    path: Path, *, t: int | None, c: int | None, skip: bool, fill_gaps: bool = False
) -> Planes | None:
    """The planes of a TIFF file, or of a folder with TIFF files and nothing of a Zarr store; None for all
    else.

    `c` is a channel's number in the names (`ch1`, `C01`, `561nm`), or an index where one file holds channels.
    Damaged planes raise DamagedStore, or with `skip` are read as zeros; planes that the numbers of a folder
    lack are an error, or with `fill_gaps` read as zeros.
    """
    try:
        stack = find_stack(path, t=t, c=c, skip=skip, fill_gaps=fill_gaps)
    except OSError as problem:
        raise CanvasError(f"{path} cannot be opened: {problem.strerror}") from problem
    return None if stack is None else Planes(path, stack, skip=skip)


class Planes:
    """Planes along z, each an (index, file), decoded as a whole when a box intersects it."""

    fill = 0

    def __init__(self, path: Path, stack: Stack, *, skip: bool) -> None:
        self.path, self._planes, self._held, self._alone = path, stack.planes, stack.held, stack.alone
        self.shape_zyx = (len(stack.planes), *stack.shape_yx)
        self.chunk_zyx = (1, *stack.shape_yx)
        self.dtype = np.dtype(np.uint8) if stack.dtype.kind == "b" else _usual(stack.dtype)
        self.voxel_um = stack.voxel_um
        self.bad = BadChunks(skip=skip)
        self._warned = False
        self._parsed = None if stack.held == 1 else ParsedFiles()  # of files that hold many planes

    @property
    def first_file(self) -> str | None:
        """Name of the file of plane 0, where each plane is a file of a folder."""
        first = self._planes[0].file
        return None if self._held != 1 or first is None or len(self._planes) == 1 else first.name

    @property
    def files(self) -> list[Path]:
        """The files of the planes, each once, from z 0 up."""
        files = dict.fromkeys(plane.file for plane in self._planes if plane.file is not None)
        return list(dict.fromkeys(on_disk(file) for file in files))

    def plane_bytes(self, z: int) -> PlaneBytes | None:
        """Byte range of a plane's voxels in a file of its own; None where they have to be decoded."""
        file = self._planes[z].file
        if self._held != 1 or file is None or in_tar(file) is not None:
            return None
        return plane_bytes(file, self.shape_zyx[1:], self.dtype)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        if (stop[1] - start[1], stop[2] - start[2]) != self.shape_zyx[1:] and not self._warned:
            self._warned = True
            _log.warning(
                "%s: reading boxes of TIFF planes is slow, whole planes are decoded; `canvas-fm convert` "
                "writes them once as OME-Zarr",
                self.path,
            )
        box = np.empty([b - a for a, b in zip(start, stop, strict=True)], self.dtype)
        self.read_into(box, start)
        return box

    def read_into(self, box: np.ndarray, start: Sequence[int]) -> None:
        """Fill a box that lies inside; whole planes are decoded in place, one thread each."""
        part = np.s_[start[1] : start[1] + box.shape[1], start[2] : start[2] + box.shape[2]]
        for z in range(len(box)):
            file, page = self._planes[start[0] + z]
            if file is None:
                box[z] = 0
                continue
            place = box[z] if box.shape[1:] == self.shape_zyx[1:] and box.flags.c_contiguous else None
            try:
                plane = self._decode(file, page, place)
                if plane is not place:
                    box[z] = plane[part]
            except DamagedStore as damage:
                box[z] = 0
                self.bad.meet(damage, damage.__cause__)

    def _decode(self, file: Path, page: int, out: np.ndarray | None) -> np.ndarray:
        """A plane; `out` itself where it could be decoded there."""

        def of_file(tiff: tifffile.TiffFile) -> tuple[int, np.ndarray]:
            n_planes, plane = page_of(tiff, page, out, alone=self._alone)
            return (count_planes(tiff) if self._held == 1 else n_planes), plane

        n_planes, plane = use_tiff(file, of_file, alone=self._alone, parsed=self._parsed)
        shape_yx, dtype = self.shape_zyx[1:], self.dtype
        if plane.dtype.kind == "b":
            plane = plane.view(np.uint8)
        if (plane.shape, plane.dtype.newbyteorder("=")) != (shape_yx, dtype) or n_planes != (
            self._held or n_planes
        ):
            first = next(plane_ref.file for plane_ref in self._planes if plane_ref.file is not None)
            raise CanvasError(
                f"{file} holds {counted(n_planes, 'plane')} of shape {plane.shape}, {plane.dtype}; the first "
                f"plane, {first.name}, has shape {shape_yx}, {dtype}: copy it again, or move away what is no "
                "plane"
            )
        return plane

    def key(self, start: Sequence[int]) -> str:
        return str(self._planes[start[0]].file or self.path)

    def stamp(self, key: str) -> Any:
        try:
            info = on_disk(Path(key)).stat()
        except OSError:
            return None
        return info.st_size, info.st_mtime_ns, info.st_ino


def _usual(dtype: np.dtype) -> np.dtype:
    """A type in the machine's byte order, by the name that Zarr knows: tifffile's 64 bits have another."""
    return np.dtype(dtype.newbyteorder("=").str)
