"""TIFF volumes: a folder of planes, a stack in one file, or an OME-TIFF split over files."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tifffile

from canvas_fm.data.store.checked_store import BadChunks
from canvas_fm.data.store.keys import METADATA
from canvas_fm.data.store.tar_index import TarIndex, in_tar, member_of, on_disk
from canvas_fm.data.volume.channel import pick
from canvas_fm.data.volume.tiff.metadata import OmePixels, split_pixels, stated_voxel_um
from canvas_fm.data.volume.tiff.plane_names import order_planes
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError, DamagedStore

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

SUFFIXES = (".tif", ".tiff")
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
    found: dict[str, list[Path]] = {}
    for name in index.below(folder):
        if name.suffix.lower() in SUFFIXES and not name.name.startswith("."):
            found.setdefault(str(name.parent), []).append(path / name)
    if "." in found:
        return found["."]
    if len(found) != 1:
        listing = ", ".join(sorted(found)[:8]) or "none"
        raise CanvasError(f"{path} holds planes in the folders {listing}: give one, as {path}/FOLDER")
    return next(iter(found.values()))


def is_file(path: Path) -> bool:
    """Whether there is such a file, on the disk or in a `.tar`."""
    archive = in_tar(path)
    return path.is_file() if archive is None else archive[1] in archive[0].files


def channels_of_stack(path: Path) -> int:
    """How many channels the planes along z of a TIFF file have."""

    def about(tiff: tifffile.TiffFile) -> tuple[str, tuple[int, ...]]:
        split = split_pixels(path, tiff)
        return (split.axes, split.shape) if split is not None else _layout(tiff)[:2]

    axes, shape = use_tiff(path, about)
    return shape[axes.index("C")] if "C" in axes and "Z" in axes else 1


class Planes:
    """Planes along z, each an (index, file), decoded as a whole when a box intersects it."""

    fill = 0

    def __init__(self, path: Path, stack: Stack, *, skip: bool) -> None:
        self.path, self._planes, self._held, self._alone = path, stack.planes, stack.held, stack.alone
        self.shape_zyx = (len(stack.planes), *stack.shape_yx)
        self.chunk_zyx = (1, *stack.shape_yx)
        self.dtype = stack.dtype.newbyteorder("=")
        self.voxel_um = stack.voxel_um
        self.bad = BadChunks(skip=skip)
        self._warned = False

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
        n_planes, plane = use_tiff(
            file, lambda tiff: _plane(tiff, page, out, alone=self._alone), alone=self._alone
        )
        shape_yx, dtype = self.shape_zyx[1:], self.dtype
        if (plane.shape, plane.dtype.newbyteorder("=")) != (shape_yx, dtype) or n_planes != (
            self._held or n_planes
        ):
            first = next(plane_ref.file for plane_ref in self._planes if plane_ref.file is not None)
            raise CanvasError(
                f"{file} holds {n_planes} planes of shape {plane.shape}, {plane.dtype}; the first plane, "
                f"{first.name}, has shape {shape_yx}, {dtype}"
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


def use_tiff(path: Path, use: Callable[[tifffile.TiffFile], _Result], *, alone: bool = False) -> _Result:
    """Call `use` with the opened file; any decoding error becomes DamagedStore that names the file.

    `alone` leaves out what OME metadata say of other files, which tifffile would open all.
    """
    try:
        member = member_of(path)
        part: dict[str, Any] = {} if member is None else {"offset": member.offset, "size": member.size}
        file = path if member is None else member.archive
        with tifffile.TiffFile(file, is_ome=False if alone else None, **part) as tiff:
            return use(tiff)
    except CanvasError:
        raise
    except Exception as problem:
        # A damaged TIFF raises TiffFileError, ValueError, zlib.error, struct.error, KeyError and more.
        if isinstance(problem, ImportError) or "imagecodecs" in str(problem):
            raise CanvasError(
                f"{path} is compressed in a way whose decoder is not installed ({problem}): pip install "
                "imagecodecs"
            ) from problem
        text = " ".join(str(problem).split())[:200]
        if is_file(path) and (path.stat().st_size if member is None else member.size) == 0:
            raise DamagedStore(
                path.parent, "planes", path.name, "is empty: 0 bytes", "copy the file again"
            ) from problem
        cause = f"cannot be decoded ({type(problem).__name__}: {text})"
        raise DamagedStore(path.parent, "planes", path.name, cause, "copy the file again") from problem


def _plane(
    tiff: tifffile.TiffFile, index: int, out: np.ndarray | None, *, alone: bool
) -> tuple[int, np.ndarray]:
    """Number of planes in a file, and one of them; by page number where the file is read `alone`."""
    if alone:
        return len(tiff.pages), _decoded(tiff.pages[index], out)
    series = tiff.series[0]
    n_planes = math.prod(series.shape[:-2])
    if len(series) == n_planes:
        page = series[index]
        if page is None:
            raise ValueError(f"plane {index} is missing")
        return n_planes, _decoded(page, out)
    # One page describes many planes that lie one after another: map the file, touch only what is asked for.
    if tiff.filehandle.size != Path(tiff.filehandle.path).stat().st_size:
        raise CanvasError(f"{tiff.filehandle.path} holds a stack of which one page describes all; unpack it")
    stack = tifffile.memmap(tiff.filehandle.path, series=0, mode="r")
    return n_planes, stack.reshape(-1, *series.shape[-2:])[index]


def _decoded(page: Any, out: np.ndarray | None) -> np.ndarray:
    """Pixels of a page, in `out` where that fits; some writers count the byte that pads a Zstandard frame."""
    fits = out is not None and page.dtype is not None and (page.shape, page.dtype) == (out.shape, out.dtype)
    how = {"out": out, "maxworkers": 1} if fits else {}
    try:
        plane = page.asarray(**how)
    except RuntimeError:
        if page.compression not in (tifffile.COMPRESSION.ZSTD, tifffile.COMPRESSION.ZSTD_DEPRECATED):
            raise
        page.databytecounts = tuple(count - 1 for count in page.databytecounts)
        plane = page.asarray(**how)
    return out if fits and out is not None else plane


def _layout(tiff: tifffile.TiffFile) -> tuple[str, tuple[int, ...], np.dtype]:
    """Axes, shape and dtype of the planes in a file; some writers mark z as I or Q."""
    series = tiff.series[0]
    axes = re.sub("[IQ]", "Z", series.axes)
    shape = tuple(int(n) for n in series.shape)
    if series.dtype is None or min(shape, default=0) < 1:
        raise ValueError(f"it holds no plane, its shape is {shape}")
    if len(shape) < 2 or axes[-2:] != "YX":
        raise CanvasError(
            f"{tiff.filename} has the axes {series.axes} of shape {shape}; planes are one value a pixel"
        )
    if len(series) not in (1, math.prod(shape[:-2])):
        raise ValueError(f"it holds {len(series)} planes of {math.prod(shape[:-2])}")
    return axes, shape, series.dtype


def _file(path: Path, t: int | None, c: int | None) -> Stack:
    """Planes along z of one file, or of the files that its OME metadata name."""

    def about(tiff: tifffile.TiffFile) -> tuple[OmePixels | None, ZyxUm | None]:
        return split_pixels(path, tiff), stated_voxel_um(tiff)

    split, voxel_um = use_tiff(path, about)
    if split is not None:
        return _split(path, split, t, c, voxel_um)
    axes, shape, dtype = use_tiff(path, _layout)
    axes = _lone_axis_is_z(path, axes, shape, t, c)
    index = _index(path, axes[:-2], shape[:-2], t, c)
    numbers = np.arange(math.prod(shape[:-2])).reshape(shape[:-2])[index]
    planes = [Plane(path, int(number)) for number in numbers]
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
        raise CanvasError(f"{path} has planes of shape {page[0]}; planes are one value a pixel")
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
            + (
                ""
                if len(planes) != 1 or planes == "Z"
                else f": leave out --{planes.lower()} to take {planes} as z"
            )
        )
    return axes


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
    if t:
        raise CanvasError(f"{folder} has no axis t; there is no t={t}")
    ordered = order_planes(folder, files, c, fill_gaps=fill_gaps)
    readable = [file for file in ordered.files if file is not None]
    n_planes, shape, dtype, voxel_um = _first_readable(readable, skip=skip)
    if n_planes != 1 or len(shape) != 2:
        if len(shape) > 2 and n_planes == 1 and shape[-1] in (3, 4):
            raise CanvasError(f"{readable[0]} has planes of shape {shape}; planes are one value a pixel")
        raise CanvasError(f"{readable[0]} holds {n_planes} planes; in a folder each file holds one")
    if not fill_gaps:
        _refuse_lost_files(folder, readable)
    _log.info("%s: plane 0 is %s", folder, ordered.first)
    planes = [Plane(file, 0) for file in ordered.files]
    return Stack(planes, 1, True, (shape[0], shape[1]), dtype, voxel_um)


def _refuse_lost_files(folder: Path, readable: Sequence[Path]) -> None:
    """Name the files that OME metadata of the first plane list but the folder lacks, as its last ones."""

    def about(tiff: tifffile.TiffFile) -> OmePixels | None:
        return split_pixels(readable[0], tiff)

    try:
        split = use_tiff(readable[0], about)
    except CanvasError:
        return
    if split is None or split.shape[split.axes.index("Z")] < len(readable):
        return
    listed = {file.name for file in split.files.flat if file is not None}
    present = {file.name for file in readable}
    beside = {file.name for file in planes_in(folder)}
    lost = sorted(listed - beside)
    if lost and present <= listed:
        raise CanvasError(
            f"{folder}: {lost[0]}"
            + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
            + ", which the OME metadata name, is missing; copy it again, or give --missing-chunks empty"
        )


def _first_readable(
    files: Sequence[Path], *, skip: bool
) -> tuple[int, tuple[int, ...], np.dtype, ZyxUm | None]:
    """Plane count, shape, dtype and voxel size of the first file; with `skip` the first readable one."""

    def about(tiff: tifffile.TiffFile) -> tuple[int, tuple[int, ...], np.dtype]:
        first = tiff.pages.first
        if first.dtype is None or min(first.shape, default=0) < 1:
            raise ValueError(f"it holds no plane, its shape is {first.shape}")
        n_planes = len(tiff.pages)
        if tiff.is_imagej and tiff.imagej_metadata is not None:
            n_planes = max(n_planes, int(tiff.imagej_metadata.get("images", 1)))
        return n_planes, first.shape, first.dtype

    for file in files:
        try:
            return *use_tiff(file, about, alone=True), use_tiff(file, stated_voxel_um)
        except DamagedStore:
            if not skip or file == files[-1]:
                raise
    raise AssertionError("a folder of planes has files")
