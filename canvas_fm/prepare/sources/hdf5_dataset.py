"""Data sets of HDF5 files: which axis is which, whether they can be decoded, and one channel of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.zyx import Zyx, ZyxLike, whole_zyx
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.prepare.sources.missing_blocks import refuse_unwritten

# HDF5's registered filters that microscopes' software uses and h5py comes without.
_FILTERS = {
    307: "bzip2", 32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32013: "ZFP", 32015: "Zstandard",
    32026: "Blosc2",
}  # fmt: skip
_FEW = 4  # an axis x is never as short as this, an axis of channels is
_MOST_CHANNELS = 16
_DEEPEST = 32  # groups in groups: links of files to each other go round
_BDV = re.compile(r"(t\d+/(s\d+)/)(\d+)/cells")  # time point, set-up and level of BigDataViewer


class Hdf5Channel:
    """One channel of a data set as z, y, x; `shape_zyx` leaves out what Imaris pads.

    `picked` is the index along each stored axis that is none of these; `axes` are the letters of all.
    """

    bad_chunks: list[str]

    def __init__(
        self,
        path: Path,
        data: Any,
        axes: str = "zyx",
        picked: Mapping[str, int] | None = None,
        shape: Zyx | None = None,
        dtype: np.dtype | None = None,
    ) -> None:
        self.path, self._data, self.bad_chunks = path, data, []
        self._axes, self._picked = axes, picked or {}
        self.shape_zyx: Zyx = shape or self._zyx(data.shape)
        chunk = self._zyx(data.chunks) if data.chunks else (1, *self.shape_zyx[1:])
        self.chunk_zyx: Zyx = whole_zyx(
            [min(c, n) for c, n in zip(chunk, self.shape_zyx, strict=True)], "chunk"
        )
        self._stored = (dtype or data.dtype).newbyteorder("=")
        self.dtype = np.dtype(np.uint8) if self._stored.kind == "b" else self._stored
        _refuse_missing_filter(path, data)
        _refuse_missing_sources(path, data)

    def _zyx(self, stored: Sequence[int]) -> Zyx:
        z, y, x = (int(stored[self._axes.index(axis)]) for axis in "zyx")
        return z, y, x

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> np.ndarray:
        origin, size = whole_zyx(origin_zyx, "origin_zyx"), whole_zyx(size_zyx, "size_zyx")
        box: dict[str, Any] = {
            axis: slice(a, a + n) for axis, a, n in zip("zyx", origin, size, strict=True)
        } | dict(self._picked)
        kept = [axis for axis in self._axes if axis in "zyx"]
        try:
            voxels = np.asarray(self._data[tuple(box[axis] for axis in self._axes)])
        except OSError as problem:
            raise DamagedStore(
                self.path,
                self._data.name,
                f"near {origin}",
                f"cannot be decoded ({problem})",
                "copy it again",
            ) from problem
        voxels = voxels.transpose([kept.index(axis) for axis in "zyx"])
        return voxels.astype(self._stored, copy=False).astype(self.dtype, copy=False)

    def read_into(self, box: np.ndarray, origin_zyx: ZyxLike) -> None:
        box[:] = self.read(origin_zyx, box.shape)

    def refuse_unwritten(self) -> None:
        """Raise DamagedStore where some of its voxels were never written: HDF5 reads them as zeros."""
        ends = {axis: (0, n) for axis, n in zip("zyx", self.shape_zyx, strict=True)}
        ends |= {axis: (index, index + 1) for axis, index in self._picked.items()}
        refuse_unwritten(self.path, self._data, [ends[axis] for axis in self._axes])

    def close(self) -> None:
        """Close its file, which can be written again then: an open one cannot, not even by this process."""
        if self._data:  # another channel of it may have done so
            self._data.file.close()

    @property
    def files(self) -> list[Path]:
        """The files that its voxels lie in: those that the data set, or a link to it, names."""
        own = Path(self._data.file.filename)
        if self._data.is_virtual:
            named = [Path(source.file_name) for source in self._data.virtual_sources()]
        else:
            named = [Path(name) for name, *_ in self._data.external or ()]
        found = [_external_file(own, name) for name in named if str(name) != "."]
        return list(dict.fromkeys([own, *(file for file in found if file.is_file())]))


def _refuse_missing_filter(path: Path, data: Any) -> None:
    """Raise CanvasError where the chunks were packed by a filter that is not installed."""
    import h5py

    properties = data.id.get_create_plist()
    codes = [properties.get_filter(place)[0] for place in range(properties.get_nfilters())]
    if not all(map(h5py.h5z.filter_avail, codes)):
        with suppress(ImportError):  # which registers its filters as it is imported
            import_module("hdf5plugin")
    for code in codes:
        if not h5py.h5z.filter_avail(code):
            raise CanvasError(
                f"{path}: {data.name} is compressed by {_FILTERS.get(code, 'a further filter of HDF5')} "
                f"(filter {code}), whose decoder is not installed: pip install hdf5plugin"
            )


def _refuse_missing_sources(path: Path, data: Any) -> None:
    """Raise CanvasError where a virtual data set shows others that are gone: HDF5 reads them as zeros."""
    import h5py

    if not data.is_virtual:
        return
    for source in {(part.file_name, part.dset_name) for part in data.virtual_sources()}:
        file_name, name = source
        if "%" in file_name:  # numbered files, of which HDF5 takes as many as there are
            continue
        own = Path(data.file.filename)
        source_file = own if file_name == "." else _external_file(own, Path(file_name))
        try:
            with h5py.File(source_file, "r") as file:
                there = name in file
        except OSError:
            there = False
        if not there:
            raise CanvasError(
                f"{path}: {data.name} shows the data set {name} of {file_name}, which is not there; copy "
                "that file beside it"
            )


def _external_file(file: Path, named: Path) -> Path:
    """Path of an external file as HDF5 looks it up: next to the file, else from the current folder."""
    near = file.parent / named
    return near if near.exists() else named


def axes_of(path: Path, data: Any) -> str:
    """A letter for each stored axis: by ilastik's `axistags` or HDF5's labels of dimensions, else by its
    place in t, c, z, y, x.

    Raises CanvasError for names that are no z, y, x, and where channels that are not named stand last.
    """
    named = _axistags(data.attrs.get("axistags")) or "".join(dim.label for dim in data.dims).lower()
    if len(named) == len(data.shape):
        if any(named.count(axis) != 1 for axis in "zyx") or set(named) - set("tczyx"):
            raise CanvasError(
                f"{path}: {data.name} names its axes {', '.join(named)}; expected z, y, x, perhaps c and t"
            )
        return named
    shape, axes = data.shape, "tczyx"[-len(data.shape) :]
    if len(shape) > 3 and shape[-1] <= _FEW:
        raise CanvasError(
            f"{path}: {data.name} has shape {shape}, and nothing names its axes; the last one, of "
            f"{shape[-1]}, looks like channels: transpose it to {', '.join(axes)}, or keep ilastik's axistags"
        )
    if "c" in axes and shape[axes.index("c")] > _MOST_CHANNELS:
        raise CanvasError(
            f"{path}: {data.name} has shape {shape}; of four axes the first has to be the channels: "
            "transpose it to c, z, y, x"
        )
    return axes


def _axistags(text: Any) -> str:
    """Keys of the axes in vigra's JSON, which ilastik writes; empty where there is none."""
    try:
        axes = json.loads(text)["axes"]
        return "".join(str(axis["key"]) for axis in axes)
    except (TypeError, ValueError, KeyError):
        return ""


def images_of(file: Any) -> dict[str, Any]:
    """The data sets of 3 to 5 axes by their names; of BigDataViewer's pyramids the finest level alone.

    Parts that lie in other files (external links) belong to it; CanvasError where such a file is missing.
    """
    import h5py

    held: dict[str, Any] = {}

    def see(name: str, item: Any) -> None:
        is_image = isinstance(item, h5py.Dataset) and 3 <= len(item.shape) <= 5
        if is_image and item.dtype.kind in "iufb" and math.prod(item.shape):
            held[name] = item

    def follow(group: Any, above: str) -> None:
        for key in group:
            link, name = group.get(key, getlink=True), f"{above}{key}"
            if isinstance(link, h5py.SoftLink):
                continue
            try:
                item = group[key]
            except (KeyError, OSError) as problem:
                if not isinstance(link, h5py.ExternalLink):
                    continue
                raise CanvasError(
                    f"{file.filename}: {name} is a link to {link.path} in {link.filename}, which is not "
                    "there or cannot be read; copy that file beside it"
                ) from problem
            see(name, item)
            if isinstance(item, h5py.Group) and above.count("/") < _DEEPEST:
                follow(item, f"{name}/")

    follow(file, "")
    return {name: item for name, item in held.items() if not _is_coarser(name, held)}


def _is_coarser(name: str, held: Mapping[str, Any]) -> bool:
    match = _BDV.fullmatch(name)
    return match is not None and match[3] != "0" and f"{match[1]}0/cells" in held


def finest_level(name: str) -> str | None:
    """Name of BigDataViewer's finest level for a data set of a coarser one; None for others."""
    match = _BDV.fullmatch(name)
    return None if match is None or match[3] == "0" else f"{match[1]}0/cells"


def stored_dtype(file: Any, name: str, data: Any) -> np.dtype:
    """The type of a data set's values: BigDataViewer keeps uint16 as int16, unless it says otherwise."""
    match = _BDV.fullmatch(name)
    if match is None or data.dtype != np.int16:
        return np.dtype(data.dtype)
    about = file.get(match[2])
    kind = None if about is None else about.attrs.get("dataType")
    signed = kind in ("int16", b"int16")
    return np.dtype(data.dtype) if signed else np.dtype(np.uint16)
