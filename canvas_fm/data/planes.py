"""TIFF planes as a volume: a folder of them, or one file that holds a stack."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Shaped

from canvas_fm.errors import CanvasError, DamagedStore

_log = logging.getLogger(__name__)
SUFFIXES = (".tif", ".tiff")
# X_Y_Z_chN.tiff, the CANVAS layout: the third number is the plane, N the channel.
_CANVAS = re.compile(r"(\d+)_(\d+)_(\d+)_ch(\d+)$", re.IGNORECASE)
_SLOW = "%s: reading TIFF planes is slow; writing an OME-Zarr once with Volume.create makes every later read faster"


def is_planes(path: Path) -> bool:
    """Whether a path is a TIFF file, or a folder with TIFF files and nothing of a Zarr store."""
    if path.is_dir():
        zarr = any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray", ".zattrs"))
        return not zarr and any(entry.suffix.lower() in SUFFIXES for entry in path.iterdir())
    return path.suffix.lower() in SUFFIXES


def sorted_planes(folder: Path, channel: int | None) -> list[Path]:
    """The planes of a folder from the lowest z up: by the third number of CANVAS names, else by the numbers in the name."""
    found = [
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    named = {path: _CANVAS.search(path.stem) for path in found}
    matches = [match for match in named.values() if match is not None]
    if len(matches) < len(found):
        if matches:
            other = next(path.name for path, match in named.items() if match is None)
            raise CanvasError(f"{folder}: {other} is not named X_Y_Z_chN like the other planes; move it away")
        if channel not in (None, 0):
            raise CanvasError(
                f"{folder}: c={channel} was chosen, but the names have no channel (X_Y_Z_chN.tiff)"
            )
        return sorted(
            found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.stem)] + [path.name]
        )  # type: ignore[list-item]
    channels = sorted({int(match[4]) for match in matches})
    if channel is None and len(channels) > 1:
        raise CanvasError(f"{folder} holds the channels {channels}; choose one with --c")
    chosen = channels[0] if channel is None else channel
    if chosen not in channels:
        raise CanvasError(f"{folder} holds the channels {channels}, not {chosen}")
    ours = {path: match for path, match in named.items() if match is not None and int(match[4]) == chosen}
    tiles = {(match[1], match[2]) for match in ours.values()}
    if len(tiles) > 1:
        raise CanvasError(
            f"{folder} holds {len(tiles)} tiles (X_Y before the plane's number); stitch them first"
        )
    return sorted(ours, key=lambda path: int(ours[path][3]))


class PlaneFolder:
    """A folder of TIFF files, one plane each; `c` is N of the names `X_Y_Z_chN.tiff`."""

    def __init__(self, folder: Path, *, c: int | None = None) -> None:
        self.path = folder
        self.planes = sorted_planes(folder, c)
        if not self.planes:
            raise CanvasError(f"{folder} holds no TIFF planes")
        first = self._decode(0, None)
        self.shape_zyx = (len(self.planes), *first.shape)
        self.dtype = first.dtype.newbyteorder("=")
        self.chunk_zyx = (1, *first.shape)
        _log.warning(_SLOW, folder)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> Shaped[np.ndarray, "z y x"]:
        box = np.empty([b - a for a, b in zip(start, stop, strict=True)], self.dtype)
        for z in range(start[0], stop[0]):
            plane = self._decode(z, self.shape_zyx[1:])
            box[z - start[0]] = plane[start[1] : stop[1], start[2] : stop[2]]
        return box

    def key(self, start: Sequence[int]) -> str:
        return self.planes[start[0]].name

    def stamp(self, key: str) -> Any:
        return _stamp(self.path / key)

    def _decode(self, z: int, shape: Sequence[int] | None) -> np.ndarray:
        path = self.planes[z]
        plane = _decode(path, lambda tiff: _only_page(path, tiff).asarray())
        if shape is not None and (plane.shape != tuple(shape) or plane.dtype.newbyteorder("=") != self.dtype):
            raise CanvasError(
                f"{path} is {plane.shape} {plane.dtype}; the first plane, {self.planes[0].name}, is "
                f"{tuple(shape)} {self.dtype}"
            )
        return plane


class PlaneStack:
    """One TIFF file that holds a 3D stack; t and c are chosen where it has several."""

    def __init__(self, path: Path, *, t: int | None = None, c: int | None = None) -> None:
        self.path = path
        axes, shape, dtype, self._pages = _decode(path, _layout)
        letters = [{"I": "Z", "Q": "Z"}.get(axis, axis) for axis in axes]
        if len(shape) < 3 or letters[-2:] != ["Y", "X"] or letters.count("Z") != 1:
            raise CanvasError(
                f"{path} holds axes {axes} of shape {shape}; a volume needs planes along z, then y, x"
            )
        outer, chosen = shape[:-2], {"T": t, "C": c}
        index: list[int | slice] = []
        for letter, length in zip(letters[:-2], outer, strict=True):
            if letter == "Z":
                index.append(slice(None))
                continue
            wanted = chosen.get(letter)
            if wanted is None and length > 1:
                raise CanvasError(
                    f"{path} has {length} along {letter.lower()}; choose one with --{letter.lower()}"
                )
            if wanted is not None and not 0 <= wanted < length:
                raise CanvasError(f"{path} has {length} along {letter.lower()}; there is no {wanted}")
            index.append(wanted or 0)
        numbers = np.arange(int(np.prod(outer))).reshape(outer)[tuple(index)]
        self._numbers = [int(number) for number in numbers]
        self.shape_zyx = (len(self._numbers), shape[-2], shape[-1])
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.chunk_zyx = (1, shape[-2], shape[-1])
        self._lock = threading.Lock()
        _log.warning(_SLOW, path)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> Shaped[np.ndarray, "z y x"]:
        box = np.empty([b - a for a, b in zip(start, stop, strict=True)], self.dtype)
        numbers = self._numbers[start[0] : stop[0]]
        part = np.s_[start[1] : stop[1], start[2] : stop[2]]
        for z, plane in enumerate(_decode(self.path, lambda tiff: self._decode(tiff, numbers, part))):
            box[z] = plane
        return box

    def key(self, start: Sequence[int]) -> str:
        return self.path.name

    def stamp(self, key: str) -> Any:
        return _stamp(self.path)

    def _decode(self, tiff: tifffile.TiffFile, numbers: Sequence[int], part: Any) -> list[np.ndarray]:
        if self._pages:
            pages = tiff.series[0].pages
            return [pages[number].asarray()[part] for number in numbers]  # type: ignore[union-attr]
        stack = (
            tiff.series[0].asarray(out="memmap")
            if tiff.series[0].dataoffset is None
            else tifffile.memmap(self.path, mode="r")
        )
        planes = stack.reshape(-1, *self.shape_zyx[1:])
        return [planes[number][part] for number in numbers]


def _stamp(path: Path) -> Any:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _layout(tiff: tifffile.TiffFile) -> tuple[str, tuple[int, ...], np.dtype, bool]:
    """Axes, shape and dtype of the first series, and whether each plane is a page of its own."""
    series = tiff.series[0]
    shape = tuple(int(n) for n in series.shape)
    return series.axes, shape, series.dtype, len(series) == int(np.prod(shape[:-2]))


def _only_page(path: Path, tiff: tifffile.TiffFile) -> Any:
    if len(tiff.pages) != 1:
        raise CanvasError(f"{path} holds {len(tiff.pages)} planes; a folder of planes has one in each file")
    page = tiff.pages[0]
    if len(page.shape) != 2:  # type: ignore[union-attr]
        raise CanvasError(
            f"{path} has shape {page.shape} ({page.axes}); a plane is y, x with one value a pixel"
        )  # type: ignore[union-attr]
    return page


def _decode(path: Path, use: Any) -> Any:
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
        text = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise DamagedStore(path.parent, "planes", path.name, f"cannot be decoded ({text})") from problem
