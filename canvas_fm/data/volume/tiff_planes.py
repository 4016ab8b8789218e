"""TIFF planes as a volume: a folder of them, or one file that holds a stack."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tifffile

from canvas_fm.data.store.checked_store import BadChunks
from canvas_fm.data.store.keys import METADATA
from canvas_fm.data.volume.channel import pick
from canvas_fm.errors import CanvasError, DamagedStore

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

SUFFIXES = (".tif", ".tiff")
# X_Y_Z_chN.tiff, the CANVAS layout: the third number is the plane, N the channel.
_CANVAS = re.compile(r"(\d+)_(\d+)_(\d+)_ch(\d+)", re.IGNORECASE)
_CHANNEL = re.compile(r"(?<![a-z])ch(\d+)", re.IGNORECASE)


def open_planes(path: Path, *, t: int | None, c: int | None, skip: bool) -> Planes | None:
    """The planes of a TIFF file, or of a folder with TIFF files and nothing of a Zarr store; None for all
    else.

    `c` is N of the names `X_Y_Z_chN.tiff`, or an index where one file holds channels. Damaged planes raise
    DamagedStore, or with `skip` are read as zeros.
    """
    try:
        if path.is_dir():
            names = [] if any((path / name).exists() for name in METADATA) else list(path.iterdir())
            files = [
                name for name in names if name.suffix.lower() in SUFFIXES and not name.name.startswith(".")
            ]
            planes = Planes(path, *_folder(path, files, t, c), skip=skip) if files else None
        elif path.is_file() and path.suffix.lower() in SUFFIXES:
            planes = Planes(path, *_stack(path, t, c), skip=skip)
        else:
            planes = None
    except OSError as problem:
        raise CanvasError(f"{path} cannot be opened: {problem.strerror}") from problem
    if planes is not None:
        _log.warning(
            "%s: reading TIFF planes is slow; written once as OME-Zarr (Volume.create) every read is faster",
            path,
        )
    return planes


class Planes:
    """Planes along z, each an (index, file) and decoded as a whole whenever a box touches it."""

    fill = 0

    def __init__(
        self,
        path: Path,
        planes: Sequence[tuple[Path, int]],
        file_shape: tuple[int, ...],
        dtype: np.dtype,
        *,
        skip: bool,
    ) -> None:
        self.path, self._planes = path, planes
        self._held, shape_yx = math.prod(file_shape[:-2]), (file_shape[-2], file_shape[-1])
        self.shape_zyx = (len(planes), *shape_yx)
        self.chunk_zyx = (1, *shape_yx)
        self.dtype = dtype.newbyteorder("=")
        self.bad = BadChunks(skip=skip)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        box = np.zeros([b - a for a, b in zip(start, stop, strict=True)], self.dtype)
        part = np.s_[start[1] : stop[1], start[2] : stop[2]]
        for z in range(start[0], stop[0]):
            try:
                box[z - start[0]] = self._decode(*self._planes[z])[part]
            except DamagedStore as damage:
                self.bad.meet(damage, damage.__cause__)
        return box

    def _decode(self, file: Path, index: int) -> np.ndarray:
        held, plane = use_tiff(file, lambda tiff: _plane(tiff, index))
        expected = (self._held, self.shape_zyx[1:], self.dtype)
        if (held, plane.shape, plane.dtype.newbyteorder("=")) != expected:
            raise CanvasError(
                f"{file} holds {held} planes of shape {plane.shape}, {plane.dtype}; the first plane, "
                f"{self._planes[0][0].name}, has shape {expected[1]}, {expected[2]}"
            )
        return plane

    def key(self, start: Sequence[int]) -> str:
        return str(self._planes[start[0]][0])

    def stamp(self, key: str) -> Any:
        try:
            found = Path(key).stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino


def use_tiff(path: Path, use: Callable[[tifffile.TiffFile], _Result]) -> _Result:
    """`use` of the opened file; DamagedStore, naming it, for whatever goes wrong in decoding."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return use(tiff)
    except CanvasError:
        raise
    except Exception as problem:
        # A damaged TIFF raises TiffFileError, ValueError, zlib.error, struct.error, KeyError and more.
        if "imagecodecs" in str(problem):
            raise CanvasError(
                f"{path} is compressed in a way that needs: pip install imagecodecs"
            ) from problem
        text = " ".join(str(problem).split())[:200]
        cause = f"cannot be decoded ({type(problem).__name__}: {text})"
        raise DamagedStore(path.parent, "planes", path.name, cause, "copy the file again") from problem


def _plane(tiff: tifffile.TiffFile, index: int) -> tuple[int, np.ndarray]:
    """How many planes a file holds, and one of them."""
    series = tiff.series[0]
    held = math.prod(series.shape[:-2])
    if len(series) == held:
        page = series[index]
        if page is None:
            raise ValueError(f"plane {index} is missing")
        return held, page.asarray()
    # One page describes many planes that lie one after another: map the file, touch only what is asked for.
    stack = tifffile.memmap(tiff.filehandle.path, series=0, mode="r")
    return held, stack.reshape(-1, *series.shape[-2:])[index]


def _layout(tiff: tifffile.TiffFile) -> tuple[str, tuple[int, ...], np.dtype]:
    """Axes, shape and type of the planes in a file; some writers mark z as I or Q."""
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


def _stack(
    path: Path, t: int | None, c: int | None
) -> tuple[list[tuple[Path, int]], tuple[int, ...], np.dtype]:
    """The planes along z of one file."""
    axes, shape, dtype = use_tiff(path, _layout)
    if axes.count("Z") != 1:
        raise CanvasError(f"{path} has the axes {axes} of shape {shape}; a volume needs planes along z")
    chosen = {"t": t, "c": c}
    for letter, wanted in chosen.items():
        if wanted and letter.upper() not in axes:
            raise CanvasError(f"{path} has no axis {letter}; there is no {letter}={wanted}")
    index = [
        slice(None) if letter == "z" else pick(path, letter, length, chosen.get(letter))
        for letter, length in zip(axes[:-2].lower(), shape[:-2], strict=True)
    ]
    numbers = np.arange(math.prod(shape[:-2])).reshape(shape[:-2])[tuple(index)]
    return [(path, int(number)) for number in numbers], shape, dtype


def _folder(
    folder: Path, files: list[Path], t: int | None, c: int | None
) -> tuple[list[tuple[Path, int]], tuple[int, ...], np.dtype]:
    """The planes of a folder, one in each file, from the lowest z up."""
    if t:
        raise CanvasError(f"{folder} has no axis t; there is no t={t}")
    ordered = sort_planes(folder, files, c)
    _, shape, dtype = use_tiff(ordered[0], _layout)
    if math.prod(shape[:-2]) != 1:
        raise CanvasError(
            f"{ordered[0]} holds {math.prod(shape[:-2])} planes; in a folder each file holds one"
        )
    return [(path, 0) for path in ordered], shape, dtype


def sort_planes(folder: Path, files: Sequence[Path], c: int | None) -> list[Path]:
    """The planes of channel `c` by z: the third number of CANVAS names, else the numbers in the names."""
    ours = _of_channel(folder, files, c)
    canvas = [match for match in map(_CANVAS.fullmatch, (path.stem for path in ours)) if match]
    columns = {(match[1], match[2]) for match in canvas}
    if len(columns) > 1:
        raise CanvasError(
            f"{folder} holds {len(columns)} tiles (X_Y before the plane's number); stitch them first"
        )
    numbers = {path: [int(number) for number in re.findall(r"\d+", path.stem)] for path in ours}
    if len({len(each) for each in numbers.values()}) > 1:
        fewest, most = (end(ours, key=lambda path: len(numbers[path])).name for end in (min, max))
        raise CanvasError(f"{folder}: {most} and {fewest} are not named alike; move away what is no plane")
    ordered = sorted(ours, key=lambda path: numbers[path])
    for one, other in pairwise(ordered):
        if numbers[one] == numbers[other]:
            raise CanvasError(
                f"{folder}: {one.name} and {other.name} carry the same numbers; which one is deeper?"
            )
    return ordered


def _of_channel(folder: Path, files: Sequence[Path], c: int | None) -> list[Path]:
    """The files of one channel, by the N of chN in their names; all of them where the names have none."""
    named = {path: _CHANNEL.search(path.stem) for path in files}
    channels = sorted({int(match[1]) for match in named.values() if match})
    if not channels and c:
        raise CanvasError(f"{folder}: there is no c={c}, the names have no channel (X_Y_Z_chN.tiff)")
    if c is None and len(channels) > 1:
        raise CanvasError(f"{folder} holds the channels {channels}: choose one with --c")
    if c is not None and channels and c not in channels:
        raise CanvasError(f"{folder} holds the channels {channels}: there is no c={c}")
    return [path for path, match in named.items() if c is None or match is None or int(match[1]) == c]
