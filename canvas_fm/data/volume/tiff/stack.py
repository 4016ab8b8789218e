"""Stack of TIFF planes of a volume: in a folder, in one file, or across the files of an OME-TIFF."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from canvas_fm.data.store.files import is_store
from canvas_fm.data.store.tar_index import TarIndex, in_tar
from canvas_fm.data.volume.stored.channel import pick
from canvas_fm.data.volume.tiff.metadata import OmePixels, split_pixels, stated_voxel_um
from canvas_fm.data.volume.tiff.ome_folder import check_order, stack_of
from canvas_fm.data.volume.tiff.pages import (
    SUFFIXES,
    count_planes,
    is_file,
    layout_of,
    samples_refusal,
    use_tiff,
    warn_inverted,
)
from canvas_fm.data.volume.tiff.plane_series import order_planes
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError, DamagedStore, counted

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


def find_stack(path: Path, *, t: int | None, c: int | None, skip: bool, fill_gaps: bool) -> Stack | None:
    """The planes of a TIFF file, or of a folder with TIFF files and nothing of a Zarr store; None for all
    else."""
    if is_file(path) and path.suffix.lower() in SUFFIXES:
        return _file(path, t, c)
    if not path.is_dir() and in_tar(path) is None:
        return None
    files = planes_in(path)
    whole = stack_of(path, files)
    if whole is not None:
        _log.info("%s: its files are the stack of %s", path, whole.name)
        return _file(whole, t, c)
    return _folder(path, files, t, c, skip=skip, fill_gaps=fill_gaps) if files else None


def planes_in(folder: Path) -> list[Path]:
    """The TIFF files of a folder, or of one in a `.tar`; none where it is a Zarr store."""
    archive = in_tar(folder)
    if archive is not None:
        return _planes_in_tar(folder, *archive)
    if is_store(folder):
        return []
    return [
        name for name in folder.iterdir() if name.suffix.lower() in SUFFIXES and not name.name.startswith(".")
    ]


def _planes_in_tar(path: Path, index: TarIndex, folder: str) -> list[Path]:
    """The planes of a folder in an archive; of the only one that holds planes, where none is named."""
    by_folder: dict[str, list[Path]] = {}
    inside = index.below(folder)
    if folder and not inside:
        raise CanvasError(f"{index.archive} holds nothing called {folder!r}")
    for name in inside:
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
    """Number of channels of the planes along z of a TIFF file."""

    def about(tiff: tifffile.TiffFile) -> tuple[str, tuple[int, ...]]:
        split = split_pixels(path, tiff)
        return (split.axes, split.shape) if split is not None else layout_of(tiff)[:2]

    axes, shape = use_tiff(path, about)
    return shape[axes.index("C")] if "C" in axes and "Z" in axes else 1


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
        if not is_file(plane.file):
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
            + _how_to_z(planes, shape[0])
        )
    return axes


def _how_to_z(planes: str, count: int) -> str:
    if not planes:
        return ": this is one plane, give the folder of all"
    if planes == "C" and count <= _FEW_CHANNELS:
        return f": this is one plane in {counted(count, 'channel')}, give the folder of all planes"
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
    try:
        ordered = order_planes(folder, files, c, fill_gaps=fill_gaps)  # which refuses names of several times
    except CanvasError as problem:
        held = _count_planes_of(min(files))
        raise (_several_planes_error(min(files), held, len(files)) if held > 1 else problem) from None
    if t:
        raise CanvasError(f"{folder} has no axis t; there is no t={t}")
    readable = [file for file in ordered.files if file is not None]
    n_planes, shape, dtype, voxel_um = _first_readable(readable, skip=skip)
    if n_planes != 1 or len(shape) != 2:
        if len(shape) == 3 and n_planes == 1:
            axes = "SYX" if shape[0] < shape[2] else "YXS"
            raise samples_refusal(readable[0], axes, shape)
        raise _several_planes_error(readable[0], n_planes, len(readable))
    check_order(folder, readable, planes_in(folder), fill_gaps=fill_gaps)
    _log.info("%s: plane 0 is %s", folder, ordered.first)
    planes = [Plane(file, 0) for file in ordered.files]
    return Stack(planes, 1, True, (shape[0], shape[1]), dtype, voxel_um)


def _several_planes_error(file: Path, n_planes: int, n_files: int) -> CanvasError:
    return CanvasError(
        f"{file} holds {counted(n_planes, 'plane')}; in a folder each file holds one: give one file of the "
        f"{n_files}, or write all planes as one stack"
    )


def _count_planes_of(file: Path) -> int:
    """Number of planes of a file; 0 where it cannot be read."""
    try:
        return use_tiff(file, count_planes, alone=True)
    except CanvasError:
        return 0


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
