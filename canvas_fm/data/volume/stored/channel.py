"""One time point and channel of a Zarr image as z, y, x, whatever its axis order."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.store.files import Folder, Zipped
from canvas_fm.data.store.ome.metadata import Image
from canvas_fm.data.volume.stored.chunked_array import ChunkedArray
from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError


@dataclass(frozen=True)
class ZarrPlace:
    """Location of the same voxels for other readers: array folder and stored axis order.

    `picked` has for each stored axis the index chosen, None for z, y and x; `order_zyx` are the stored axes
    of these.
    """

    folder: Path
    zarr_format: int
    picked: tuple[int | None, ...]
    order_zyx: Zyx


class Channel:
    """Boxes z, y, x of an array with t and c fixed.

    `chunk_zyx` is the chunk as it lies in z, y, x; `fill` what a chunk that is not stored holds.
    """

    def __init__(self, array: ChunkedArray, image: Image, t: int | None, c: int | None) -> None:
        self.array, self._image, self._chosen = array, image, (t, c)
        store, chosen = array.store.files, {"t": t, "c": c}
        for letter, index in chosen.items():
            if index and letter not in image.axes:
                raise CanvasError(f"{store} has no axis {letter}; there is no {letter}={index}")
        if len(array.shape) != len(image.axes):
            raise CanvasError(f"{store}: array {array.path!r} has shape {array.shape} for axes {image.axes}")
        self._fixed = {
            at: pick(store, letter, length, chosen.get(letter), image.channels)
            for at, (letter, length) in enumerate(zip(image.axes, array.shape, strict=True))
            if letter not in "zyx"
        }
        self.c = next((index for at, index in self._fixed.items() if image.axes[at] == "c"), 0)
        self._at = [image.axes.index(letter) for letter in "zyx"]
        self._as_stored = len(array.shape) == 3 and self._at == [0, 1, 2]
        self.shape_zyx = self._zyx(array.shape)
        self.chunk_zyx = self._zyx(
            [min(c, max(n, 1)) for c, n in zip(array.chunks, array.shape, strict=True)]
        )
        self.dtype = array.dtype.newbyteorder("=") if array.dtype.kind in "iuf" else array.dtype
        self.fill = array.fill_value
        if array.dtype.kind == "b":  # a mask: 0 and 1
            self.dtype, self.fill = np.dtype(np.uint8), int(array.fill_value)
        self.bad = array.bad
        start = f"{array.path}/" if array.path else ""
        self._metadata = [start + name for name in ("zarr.json", ".zarray")]

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        if self._as_stored:
            return self.array.read(start, stop).astype(self.dtype, copy=False)
        box = self.array.read(self._stored(start, 0), self._stored(stop, 1)).astype(self.dtype, copy=False)
        free_axes = [at for at in range(box.ndim) if at not in self._fixed]
        box = box.reshape([box.shape[at] for at in free_axes])
        return np.ascontiguousarray(box.transpose([free_axes.index(at) for at in self._at]))

    def check(self, start: Sequence[int]) -> bool:
        """Verify the file that holds a voxel; False if it is damaged and damage is skipped, else raises."""
        return not self.array.is_bad(self._stored(start, 0))

    def coarser(self) -> list[Channel]:
        """The stored levels of the pyramid after this one, as far as each is smaller than the one before."""
        levels: list[Channel] = []
        for path, zarr_format in self._image.coarser:
            level = Channel(self.array.another(path, zarr_format), self._image, *self._chosen)
            before = (levels or [self])[-1].shape_zyx
            if level.dtype != self.dtype or level.shape_zyx == before:
                break
            if any(a > b for a, b in zip(level.shape_zyx, before, strict=True)):
                break
            levels.append(level)
        return levels

    @property
    def place(self) -> ZarrPlace | None:
        """Location for other readers, None for a zipped store."""
        files = self.array.store.files
        if not isinstance(files, Folder):
            return None
        picked = tuple(self._fixed.get(at) for at in range(len(self.array.shape)))
        return ZarrPlace(
            files.root / self.array.path, self.array.zarr_format, picked, self._zyx(range(len(picked)))
        )

    def attributes(self, written: dict[str, Any]) -> dict[str, Any]:
        """Of our attributes of a store, those of this channel where it has several (marker, window)."""
        return written | (written["channels"][self.c] if "channels" in written else {})

    @property
    def files(self) -> list[Path]:
        """All files of the store, or the archive that it lies in; none for a remote one."""
        files = self.array.store.files
        if isinstance(files, Folder):
            return sorted(files.root / key for key in files.listing())
        return [files.root] if isinstance(files, Zipped) else []

    def key(self, start: Sequence[int]) -> str:
        """Key of the file that holds a voxel."""
        return self.array.file_key(self._stored(start, 0))

    def stamp(self, key: str) -> Any:
        """Stamp of a file combined with that of the array's metadata."""
        files = self.array.store.files
        return [files.stamp(key), *(files.stamp(name) for name in self._metadata)]

    def _zyx(self, stored: Sequence[int]) -> Zyx:
        z, y, x = (int(stored[at]) for at in self._at)
        return z, y, x

    def _stored(self, zyx: Sequence[int], past: int) -> list[int]:
        place = [0] * len(self.array.shape)
        for at, value in zip(self._at, zyx, strict=True):
            place[at] = value
        for at, value in self._fixed.items():
            place[at] = value + past
        return place


def pick(store: object, letter: str, length: int, requested: int | None, names: Sequence[str] = ()) -> int:
    """Index along an axis other than z, y, x: the only one, else the requested one, else CanvasError."""
    named = f" ({', '.join(names)})" if letter == "c" and len(names) == length else ""
    if requested is None and length == 1:
        return 0
    if requested is None and letter not in ("t", "c"):
        raise CanvasError(f"{store} has a further axis of length {length}; one can be chosen of t and c only")
    if requested is None:
        raise CanvasError(
            f"{store} has {length} along axis {letter}{named}: choose one with --{letter} 0 to {length - 1}"
        )
    try:
        index = operator.index(requested)
    except TypeError as problem:
        raise CanvasError(
            f"{letter}={requested!r}; expected a whole number from 0 to {length - 1}"
        ) from problem
    if not 0 <= index < length:
        raise CanvasError(f"{store} has {length} along axis {letter}{named}: there is no {letter}={index}")
    return index
