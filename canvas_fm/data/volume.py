"""A volume: one channel of one brain, read box by box from whatever it lies in."""

from __future__ import annotations

import json
import logging
import math
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsFloat, SupportsIndex

import numpy as np
from jaxtyping import Shaped

from canvas_fm.data import ome
from canvas_fm.data.chunked import ChunkedArray, MissingChunks, OnBadChunk
from canvas_fm.data.planes import PlaneFolder, PlaneStack, is_planes
from canvas_fm.data.store import MANIFEST, CheckedStore, open_files
from canvas_fm.data.window import DEFAULT_RULE, Window, WindowCache, WindowRule, find_window
from canvas_fm.errors import CanvasError, DamagedStore

_log = logging.getLogger(__name__)

Zyx = tuple[int, int, int]
ZyxUm = tuple[float, float, float]
ZyxLike = Sequence[SupportsIndex] | np.ndarray
ZyxUmLike = Sequence[SupportsFloat] | np.ndarray
NAMESPACE = "canvas_fm"  # our attributes in a store that we wrote


class _Source(Protocol):
    """Where voxels come from: boxes inside the volume, in z, y, x."""

    shape_zyx: Zyx
    chunk_zyx: Zyx
    dtype: np.dtype

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray: ...
    def key(self, start: Sequence[int]) -> str: ...
    def stamp(self, key: str) -> Any: ...


class Volume:
    """One channel of one brain: positions are z, y, x in voxels of level 0, `voxel_um` is z, y, x in micrometres.

    Safe to read from several threads; pickled, it is opened again by its path. After a `fork` it must not be used
    (the reader's threads do not survive one): start workers with spawn or forkserver.
    """

    path: Path
    name: str
    shape_zyx: Zyx
    dtype: np.dtype
    voxel_um: ZyxUm
    chunk_zyx: Zyx
    marker: str | None
    checksums: bool

    def __init__(self, path: Path, source: _Source, voxel_um: ZyxUm, options: dict[str, Any]) -> None:
        self.path, self.voxel_um = path, voxel_um
        self.name = volume_name(path)
        self.shape_zyx, self.chunk_zyx, self.dtype = source.shape_zyx, source.chunk_zyx, source.dtype
        self.marker = options.get("marker")
        self.checksums = False
        self._source, self._options = source, options
        self._attributes: dict[str, Any] = {}
        self._windows: dict[WindowRule, Window] = {}

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        voxel_um: ZyxUmLike | None = None,
        t: int | None = None,
        c: int | None = None,
        marker: str | None = None,
        on_bad_chunk: OnBadChunk = "error",
        missing_chunks: MissingChunks = "error",
    ) -> Volume:
        """A volume from OME-Zarr 0.4 or 0.5, a plain 3D Zarr array, either of them zipped, or TIFF planes.

        `voxel_um` is needed where the metadata gives no voxel size, and wins, with a warning, where it gives another.
        `t` and `c` choose where there are several. `on_bad_chunk="skip"` reads damage as zeros and lists it in
        `bad_chunks`; `missing_chunks="empty"` reads what a store without checksums does not hold as its fill value.
        Raises CanvasError with what to do, and DamagedStore where a file is not what was written.
        """
        path = Path(path)
        options = dict(
            voxel_um=voxel_um,
            t=t,
            c=c,
            marker=marker,
            on_bad_chunk=on_bad_chunk,
            missing_chunks=missing_chunks,
        )
        _check_choice("on_bad_chunk", on_bad_chunk, ("error", "skip"))
        _check_choice("missing_chunks", missing_chunks, ("error", "empty"))
        given = None if voxel_um is None else check_voxel_um(voxel_um)
        if path.exists() and is_planes(path):
            if given is None:
                raise CanvasError(f"{path} has no voxel size; give --voxel-um z y x once")
            source = PlaneFolder(path, c=c) if path.is_dir() else PlaneStack(path, t=t, c=c)
            _check_voxels(path, source)
            return cls(path, source, given, options)._with_marker(None)
        return cls._open_zarr(path, given, options)

    @classmethod
    def _open_zarr(cls, path: Path, given: ZyxUm | None, options: dict[str, Any]) -> Volume:
        store = CheckedStore(open_files(path))
        image = ome.read_image(store.files)
        ours = image.attributes.get(NAMESPACE)
        _check_written(path, store, ours)
        array = ChunkedArray(
            store,
            image.array,
            image.zarr_format,
            on_bad_chunk=options["on_bad_chunk"],
            missing_chunks=options["missing_chunks"],
        )
        source = _ZarrSource(array, image, options["t"], options["c"])
        _check_voxels(path, source)
        volume = cls(path, source, _choose_voxel(path, image, given), options)
        volume.checksums = store.listed is not None
        volume._attributes = ours if isinstance(ours, dict) else {}
        return volume._with_marker(volume._attributes.get("marker"))

    def _with_marker(self, stated: Any) -> Volume:
        """The marker the store states, else meta.json beside it, else the one given."""
        known = stated or _marker_beside(self.path)
        if known and self.marker and known != self.marker:
            _log.warning("%s states the marker %s; --marker %s is not used", self.path, known, self.marker)
        self.marker = str(known) if known else self.marker
        return self

    @property
    def options(self) -> dict[str, Any]:
        """How it was opened: the keywords of `open`."""
        return dict(self._options)

    @property
    def bad_chunks(self) -> list[str]:
        """What `on_bad_chunk="skip"` passed over so far, one sentence each."""
        return list(self._source.array.bad_chunks) if isinstance(self._source, _ZarrSource) else []

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> Shaped[np.ndarray, "z y x"]:
        """Read a box at level 0 in the store's own type; what lies outside the volume is zero."""
        origin, size = _three(origin_zyx, "origin_zyx"), _three(size_zyx, "size_zyx")
        if min(size) < 0:
            raise CanvasError(f"size_zyx is {size}; expected three sizes of at least 0")
        start = [min(max(a, 0), n) for a, n in zip(origin, self.shape_zyx, strict=True)]
        stop = [min(max(a + s, b), n) for a, s, b, n in zip(origin, size, start, self.shape_zyx, strict=True)]
        inside = all(b > a for a, b in zip(start, stop, strict=True))
        if inside and tuple(b - a for a, b in zip(start, stop, strict=True)) == size:
            return self._source.read(start, stop)
        try:
            box = np.zeros(size, self.dtype)
        except (MemoryError, ValueError) as problem:
            raise CanvasError(f"a box of {size} voxels does not fit in memory") from problem
        if inside:
            place = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))
            box[place] = self._source.read(start, stop)
        return box

    def read_chunk(self, index_zyx: ZyxLike) -> Shaped[np.ndarray, "z y x"]:
        """One decoded chunk, clipped at the volume's border; `index_zyx` counts chunks, not voxels."""
        index = _three(index_zyx, "index_zyx")
        start = [i * size for i, size in zip(index, self.chunk_zyx, strict=True)]
        if not all(0 <= a < n for a, n in zip(start, self.shape_zyx, strict=True)):
            raise CanvasError(f"{self.path} has no chunk {index}: its shape is {self.shape_zyx}")
        stop = [min(a + s, n) for a, s, n in zip(start, self.chunk_zyx, self.shape_zyx, strict=True)]
        return self._source.read(start, stop)

    @property
    def window(self) -> Window:
        """The intensity window of the whole volume by the default rule (percentiles 0.5 and 99.9), found once."""
        return self.window_by(DEFAULT_RULE)

    def window_by(self, rule: WindowRule) -> Window:
        """The intensity window by a rule: kept in stores that we wrote, in the user's cache folder for others."""
        if rule not in self._windows:
            self._windows[rule] = self._stored_window(rule) or self._find_window(rule)
        return self._windows[rule]

    def _stored_window(self, rule: WindowRule) -> Window | None:
        held = self._attributes.get("window")
        if not self.checksums or held is None or self._attributes.get("window_rule") != str(rule):
            return None
        return Window(float(held[0]), float(held[1]))

    def _find_window(self, rule: WindowRule) -> Window:
        identity = (self.path.resolve(), self._options["t"], self._options["c"], self.shape_zyx, self.dtype)
        cache = WindowCache(identity, self._source.stamp)
        found = cache.get(rule)
        if found is not None:
            return found
        keys: dict[str, None] = {}

        def read(start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
            keys.update(dict.fromkeys(_keys(self._source, start, stop)))
            return self._source.read(start, stop)

        fill = getattr(self._source, "fill", 0)
        window = find_window(str(self.path), read, self.shape_zyx, self.chunk_zyx, self.dtype, fill, rule)
        if not self.bad_chunks:
            cache.put(rule, window, list(keys))
        return window

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._options)

    def __repr__(self) -> str:
        return (
            f"Volume({str(self.path)!r}, shape_zyx={self.shape_zyx}, {self.dtype}, voxel_um={self.voxel_um})"
        )

    @classmethod
    def create(cls, path: str | Path, shape_zyx: ZyxLike, **options: Any) -> Any:
        from canvas_fm.data.writer import create

        return create(path, shape_zyx, **options)


class _ZarrSource:
    """The z, y, x of one t and one c of a Zarr array, in whatever order it stores them."""

    def __init__(self, array: ChunkedArray, image: ome.Image, t: int | None, c: int | None) -> None:
        self.array = array
        chosen = {"t": t, "c": c}
        for letter in chosen:
            if chosen[letter] not in (None, 0) and letter not in image.axes:
                raise CanvasError(
                    f"{array.store.files} has no axis {letter}; {letter}={chosen[letter]} chooses nothing"
                )
        self._fixed: dict[int, int] = {}
        for at, (letter, length) in enumerate(zip(image.axes, array.shape, strict=True)):
            if letter not in "zyx":
                self._fixed[at] = _pick(array.store.files, letter, length, chosen.get(letter), image.channels)
        self._at = [image.axes.index(letter) for letter in "zyx"]
        self.shape_zyx = self._zyx(array.shape)
        self.chunk_zyx = self._zyx(
            [min(a, max(b, 1)) for a, b in zip(array.chunks, array.shape, strict=True)]
        )
        self.dtype = array.dtype.newbyteorder("=")
        self.fill = 0 if array.fill_value is None else array.fill_value
        self._metadata = [f"{image.array}/{name}".lstrip("/") for name in ("zarr.json", ".zarray")]

    def _zyx(self, stored: Sequence[int]) -> Zyx:
        z, y, x = (int(stored[at]) for at in self._at)
        return z, y, x

    def _stored(self, zyx: Sequence[int], more: int) -> list[int]:
        place = [0] * len(self.array.shape)
        for at, value in zip(self._at, zyx, strict=True):
            place[at] = value
        for at, value in self._fixed.items():
            place[at] = value + more
        return place

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        box = self.array.read(self._stored(start, 0), self._stored(stop, 1))
        if len(self.array.shape) == 3 and self._at == [0, 1, 2]:
            return box
        kept = [at for at in range(box.ndim) if at not in self._fixed]
        box = box.reshape([box.shape[at] for at in kept])
        return np.ascontiguousarray(box.transpose([kept.index(at) for at in self._at]))

    def key(self, start: Sequence[int]) -> str:
        return self.array.file_key(self._stored(start, 0))

    def stamp(self, key: str) -> Any:
        files = self.array.store.files
        return [files.stamp(key), *(files.stamp(name) for name in self._metadata)]


def _pick(store: object, letter: str, length: int, wanted: int | None, channels: Sequence[str]) -> int:
    named = f" ({', '.join(channels)})" if letter == "c" and len(channels) == length else ""
    if wanted is None:
        if length == 1:
            return 0
        if letter == "?":
            raise CanvasError(
                f"{store} has a further axis of length {length}; only t and c can be chosen from"
            )
        raise CanvasError(
            f"{store} has {length} along axis {letter}{named}; choose one with --{letter} 0 to {length - 1}"
        )
    if not 0 <= wanted < length:
        raise CanvasError(f"{store} has {length} along axis {letter}{named}; there is no {letter}={wanted}")
    return wanted


def _keys(source: _Source, start: Sequence[int], stop: Sequence[int]) -> list[str]:
    """The files that a box is read from."""
    spans = [range(a - a % s, b, s) for a, b, s in zip(start, stop, source.chunk_zyx, strict=True)]
    return [source.key((z, y, x)) for z in spans[0] for y in spans[1] for x in spans[2]]


def _check_written(path: Path, store: CheckedStore, ours: Any) -> None:
    """What we wrote has to be complete, and its attributes and manifest have to be there together."""
    beside = path.resolve().parent
    if ours is None and store.listed is None:
        if path.is_dir() and (beside / MANIFEST).exists():
            raise CanvasError(f"{path} is one level of {beside}; give {beside}")
        return
    if ours is not None and not (isinstance(ours, dict) and ours.get("complete") is True):
        raise CanvasError(
            f"{path} was never finished: the work that wrote it ended early; delete it and write it again"
        )
    if store.listed is None:
        raise DamagedStore(path, "", MANIFEST, "the list of checksums is missing", "write the store again")
    if ours is None:
        raise DamagedStore(
            path, "", "zarr.json", f"its {NAMESPACE!r} attributes are missing", "write the store again"
        )
    store.verify_metadata()


def _choose_voxel(path: Path, image: ome.Image, given: ZyxUm | None) -> ZyxUm:
    if given is None and image.voxel_um is None:
        raise CanvasError(f"{path} has no voxel size; give --voxel-um z y x once ({image.why_no_voxel})")
    if given is None or image.voxel_um is None:
        return given or check_voxel_um(image.voxel_um or ())
    if any(abs(a - b) > 0.05 * b for a, b in zip(given, image.voxel_um, strict=True)):
        _log.warning(
            "%s states a voxel of %s µm (z, y, x); the given %s is used", path, image.voxel_um, given
        )
    return given


def _check_voxels(path: Path, source: _Source) -> None:
    if source.dtype.kind not in "iuf" or source.dtype.itemsize > 8:
        raise CanvasError(f"{path} holds {source.dtype} values; a volume holds integers or floats")
    if min(source.shape_zyx) < 1:
        raise CanvasError(f"{path} is empty: its shape is {source.shape_zyx} (z, y, x)")


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise CanvasError(f"{name} is {value!r}; expected {' or '.join(known)}")


def check_voxel_um(given: ZyxUmLike) -> ZyxUm:
    """Three positive lengths in micrometres, z, y, x; CanvasError otherwise."""
    values = [float(value) for value in given]
    if len(values) != 3 or not all(math.isfinite(value) and value > 0 for value in values):
        raise CanvasError(f"voxel_um is {values}; expected three positive lengths in micrometres: z y x")
    return values[0], values[1], values[2]


def _three(given: ZyxLike, name: str) -> Zyx:
    try:
        z, y, x = (operator.index(value) for value in given)
    except (TypeError, ValueError) as problem:
        raise CanvasError(f"{name} is {given!r}; expected three whole numbers: z, y, x") from problem
    return z, y, x


def volume_name(path: Path) -> str:
    """The file's stem; X for `X/raw.zarr` and for the planes in `X/image`."""
    path = path.resolve()
    stem = re.sub(r"(\.ome)?\.(zarr(\.zip)?|zip|tiff?)$", "", path.name, flags=re.IGNORECASE)
    return path.parent.name if stem in ("raw", "image") and path.parent.name else stem


def _marker_beside(path: Path) -> str | None:
    try:
        held = json.loads((path.resolve().parent / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    marker = held.get("marker") if isinstance(held, dict) else None
    return marker if isinstance(marker, str) else None


def _reopen(path: Path, options: dict[str, Any]) -> Volume:
    return Volume.open(path, **options)
