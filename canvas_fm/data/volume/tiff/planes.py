"""TIFF volumes: a folder of planes, a stack in one file, or an OME-TIFF split over files."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

from canvas_fm.data.store.checked_store import BadChunks
from canvas_fm.data.store.keys import METADATA
from canvas_fm.data.store.tar_index import TarIndex, in_tar, on_disk
from canvas_fm.data.volume.stored.channel import pick
from canvas_fm.data.volume.tiff.metadata import OmePixels, split_pixels, stated_voxel_um
from canvas_fm.data.volume.tiff.ome_folder import check_order, stack_of
from canvas_fm.data.volume.tiff.pages import (
    SUFFIXES,
    count_planes,
    is_file,
    layout_of,
    page_of,
    samples_refusal,
    use_tiff,
    warn_inverted,
)
from canvas_fm.data.volume.tiff.plane_names import order_planes
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError, DamagedStore

_log = logging.getLogger(__name__)

_FEW_CHANNELS = 4  # a lone axis of channels no longer than this is one plane in colours, not a stack


class Plane(NamedTuple):
    """Location of a plane: a page of a file; None for a missing one, read as 0."""

    file: Path | None
    page: int


class Stack(NamedTuple):
    """Planes by rising z, planes in each file (None: not compared), and the files' metadata.

    `alone`: a page is read by its number, whatever OME metadata say of other files.
    """

    planes: Sequence[Plane]
    held: int | None
    alone: bool
    shape_yx: tuple[int, int]
    dtype: np.dtype
    voxel_um: ZyxUm | None


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
        if is_file(path) and path.suffix.lower() in SUFFIXES:
            stack: Stack | None = _file(path, t, c)
        elif path.is_dir() or in_tar(path) is not None:
            files = planes_in(path)
            whole = stack_of(path, files)
            if whole is not None:
                _log.info("%s: its files are the stack of %s", path, whole.name)
                stack = _file(whole, t, c)
            else:
                stack = _folder(path, files, t, c, skip=skip, fill_gaps=fill_gaps) if files else None
        else:
            stack = None
    except OSError as problem:
        raise CanvasError(f"{path} cannot be opened: {problem.strerror}") from problem
    if stack is None:
        return None
    return Planes(path, stack, skip=skip)


def planes_in(folder: Path) -> list[Path]:
    """The TIFF files of a folder, or of one in a `.tar`; none where it is a Zarr store."""
    archive = in_tar(folder)
    if archive is not None:
        return _planes_in_tar(folder, *archive)
    if any((folder / name).exists() for name in METADATA):
        return []
    return [
        name for name in folder.iterdir() if name.suffix.lower() in SUFFIXES and not name.name.startswith(".")
    ]


def _planes_in_tar(path: Path, index: TarIndex, folder: str) -> list[Path]:
    """The planes of a folder in an archive; of the only one that holds planes, where none is named."""
    by_folder: dict[str, list[Path]] = {}
    for name in index.below(folder):
        if name.suffix.lower() in SUFFIXES and not name.name.startswith("."):
            by_folder.setdefault(str(name.parent), []).append(path / name)
    if "." in by_folder:
        return by_folder["."]
    if len(by_folder) != 1:
        if not by_folder:
            raise CanvasError(
                f"{path} holds no TIFF planes; unpack it, a Zarr store is read from a folder or a .zip"
            )
        listing = ", ".join(sorted(by_folder)[:8])
        raise CanvasError(f"{path} holds planes in the folders {listing}: give one, as {path}/FOLDER")
    return next(iter(by_folder.values()))


def channels_of_stack(path: Path) -> int:
    """How many channels the planes along z of a TIFF file have."""

    def about(tiff: tifffile.TiffFile) -> tuple[str, tuple[int, ...]]:
        split = split_pixels(path, tiff)
        return (split.axes, split.shape) if split is not None else layout_of(tiff)[:2]

    axes, shape = use_tiff(path, about)
    return shape[axes.index("C")] if "C" in axes and "Z" in axes else 1


class Planes:
    """Planes along z, each an (index, file), decoded as a whole when a box intersects it."""

    fill = 0

    def __init__(self, path: Path, stack: Stack, *, skip: bool) -> None:
        self.path, self._planes, self._held, self._alone = path, stack.planes, stack.held, stack.alone
        self.shape_zyx = (len(stack.planes), *stack.shape_yx)
        self.chunk_zyx = (1, *stack.shape_yx)
        self.dtype = np.dtype(np.uint8) if stack.dtype.kind == "b" else stack.dtype.newbyteorder("=")
        self.voxel_um = stack.voxel_um
        self.bad = BadChunks(skip=skip)
        self._warned = False

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

        n_planes, plane = use_tiff(file, of_file, alone=self._alone)
        shape_yx, dtype = self.shape_zyx[1:], self.dtype
        if plane.dtype.kind == "b":
            plane = plane.view(np.uint8)
        if (plane.shape, plane.dtype.newbyteorder("=")) != (shape_yx, dtype) or n_planes != (
            self._held or n_planes
        ):
            first = next(plane_ref.file for plane_ref in self._planes if plane_ref.file is not None)
            raise CanvasError(
                f"{file} holds {n_planes} planes of shape {plane.shape}, {plane.dtype}; the first plane, "
                f"{first.name}, has shape {shape_yx}, {dtype}: copy it again, or move away what is no plane"
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


def _file(path: Path, t: int | None, c: int | None) -> Stack:
    """Planes along z of one file, or of the files that its OME metadata name."""

    def about(tiff: tifffile.TiffFile) -> tuple[OmePixels | None, ZyxUm | None]:
        return split_pixels(path, tiff), stated_voxel_um(path, tiff)

    split, voxel_um = use_tiff(path, about)
    if split is not None:
        return _split(path, split, t, c, voxel_um)
    axes, shape, dtype, pages = use_tiff(path, layout_of)
    axes = _lone_axis_is_z(path, axes, shape, t, c)
    index = _index(path, axes[:-2], shape[:-2], t, c)
    numbers = np.arange(math.prod(shape[:-2])).reshape(shape[:-2])[index]
    planes = [Plane(path, int(number)) for number in numbers]
    if pages is not None:
        planes = [Plane(path, pages[plane.page]) for plane in planes]
        return Stack(planes, None, True, (shape[-2], shape[-1]), dtype, voxel_um)
    return Stack(planes, math.prod(shape[:-2]), False, (shape[-2], shape[-1]), dtype, voxel_um)


def _split(path: Path, split: OmePixels, t: int | None, c: int | None, voxel_um: ZyxUm | None) -> Stack:
    axes = _lone_axis_is_z(path, _without_ones(split), _shape_of(split), t, c)
    index = _index(path, axes, _shape_of(split), t, c)
    files, pages = (table.reshape(_shape_of(split))[index] for table in (split.files, split.pages))
    planes = [Plane(file, int(page)) for file, page in zip(files, pages, strict=True)]
    for z, plane in enumerate(planes):
        if plane.file is None:
            raise CanvasError(f"{path}: its OME metadata name no file for plane {z}")
        if not plane.file.is_file():
            raise CanvasError(f"{path}: {plane.file.name}, the file of plane {z}, is missing; copy it again")
    page = use_tiff(path, lambda tiff: (tiff.pages.first.shape, tiff.pages.first.dtype), alone=True)
    if len(page[0]) != 2 or page[1] is None:
        raise CanvasError(
            f"{path} has planes of shape {page[0]}; planes have the axes y, x: save them as grey"
        )
    return Stack(planes, None, True, (page[0][0], page[0][1]), page[1], voxel_um)


def _without_ones(split: OmePixels) -> str:
    return "".join(axis for axis, n in zip(split.axes, split.shape, strict=True) if n > 1 or axis == "Z")


def _shape_of(split: OmePixels) -> tuple[int, ...]:
    return tuple(n for axis, n in zip(split.axes, split.shape, strict=True) if n > 1 or axis == "Z")


def _lone_axis_is_z(path: Path, axes: str, shape: Sequence[int], t: int | None, c: int | None) -> str:
    """Take a lone axis of planes as Z: ImageJ and tifffile mark stacks as time points or channels."""
    planes = axes.removesuffix("YX")
    if planes in ("T", "C") and not t and not c and not (planes == "C" and shape[0] <= _FEW_CHANNELS):
        _log.warning(
            "%s marks its %d planes as axis %s; they are taken as planes along z", path, shape[0], planes
        )
        return "Z" + axes[1:]
    if planes.count("Z") != 1:
        raise CanvasError(
            f"{path} has the axes {axes} of shape {tuple(shape)}; a volume needs planes along z"
            + _how_to_z(planes)
        )
    return axes


def _how_to_z(planes: str) -> str:
    if not planes:
        return ": this is one plane, give the folder of all"
    return f": leave out --{planes.lower()} to take {planes} as z" if planes in ("T", "C") else ""


def _index(
    path: Path, axes: str, shape: Sequence[int], t: int | None, c: int | None
) -> tuple[slice | int, ...]:
    """Index of one time point and channel, every plane."""
    chosen = {"t": t, "c": c}
    for letter, index in chosen.items():
        if index and letter.upper() not in axes:
            raise CanvasError(f"{path} has no axis {letter}; there is no {letter}={index}")
    return tuple(
        slice(None) if letter == "z" else pick(path, letter, length, chosen.get(letter))
        for letter, length in zip(axes.lower(), shape, strict=True)
    )


def _folder(
    folder: Path, files: list[Path], t: int | None, c: int | None, *, skip: bool, fill_gaps: bool
) -> Stack:
    """Planes of a folder with one in each file, by rising z."""
    ordered = order_planes(folder, files, c, fill_gaps=fill_gaps)  # which refuses names of several times
    if t:
        raise CanvasError(f"{folder} has no axis t; there is no t={t}")
    readable = [file for file in ordered.files if file is not None]
    n_planes, shape, dtype, voxel_um = _first_readable(readable, skip=skip)
    if n_planes != 1 or len(shape) != 2:
        if len(shape) == 3 and n_planes == 1:
            axes = "SYX" if shape[0] < shape[2] else "YXS"
            raise samples_refusal(readable[0], axes, shape)
        raise CanvasError(
            f"{readable[0]} holds {n_planes} planes; in a folder each file holds one: give one file of the "
            f"{len(readable)}, or write all planes as one stack"
        )
    check_order(folder, readable, planes_in(folder), fill_gaps=fill_gaps)
    _log.info("%s: plane 0 is %s", folder, ordered.first)
    planes = [Plane(file, 0) for file in ordered.files]
    return Stack(planes, 1, True, (shape[0], shape[1]), dtype, voxel_um)


def _first_readable(
    files: Sequence[Path], *, skip: bool
) -> tuple[int, tuple[int, ...], np.dtype, ZyxUm | None]:
    """Plane count, shape, dtype and voxel size of the first file; with `skip` the first readable one."""

    def about(tiff: tifffile.TiffFile) -> tuple[int, tuple[int, ...], np.dtype]:
        first = tiff.pages.first
        if first.dtype is None or min(first.shape, default=0) < 1:
            raise ValueError(f"it holds no plane, its shape is {first.shape}")
        warn_inverted(tiff)
        n_planes = count_planes(tiff)
        if tiff.is_imagej and tiff.imagej_metadata is not None:
            n_planes = max(n_planes, int(tiff.imagej_metadata.get("images", 1)))
        return n_planes, first.shape, first.dtype

    for file in files:
        try:
            return *use_tiff(file, about, alone=True), use_tiff(file, partial(stated_voxel_um, file))
        except DamagedStore:
            if not skip or file == files[-1]:
                raise
    raise AssertionError("a folder of planes has files")
