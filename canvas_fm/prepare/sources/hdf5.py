"""HDF5 and Imaris files, read through h5py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.zyx import Zyx, ZyxLike, ZyxUm, check_voxel_um, whole_zyx
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.prepare.options import ConvertOptions
from canvas_fm.prepare.sources.voxels import OpenedFile

HDF5 = (".h5", ".hdf5", ".hdf", ".ims")
_IMARIS = "DataSet/ResolutionLevel 0"
_SIZES = ("element_size_um", "voxel_size_um")  # z, y, x: what Fiji's and PlantSeg's writers call it


class Hdf5Channel:
    """One channel of a data set; `shape_zyx` leaves out what Imaris pads."""

    bad_chunks: list[str]

    def __init__(self, path: Path, data: Any, lead: tuple[int, ...] = (), shape: Zyx | None = None) -> None:
        self.path, self._data, self._lead, self.bad_chunks = path, data, lead, []
        z, y, x = (int(n) for n in data.shape[len(lead) :])
        self.shape_zyx: Zyx = shape or (z, y, x)
        chunk = (data.chunks or (1, *data.shape[-2:]))[-3:]
        self.chunk_zyx: Zyx = whole_zyx(
            [min(c, n) for c, n in zip(chunk, self.shape_zyx, strict=True)], "chunk"
        )
        self.dtype = data.dtype.newbyteorder("=")

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> np.ndarray:
        origin, size = whole_zyx(origin_zyx, "origin_zyx"), whole_zyx(size_zyx, "size_zyx")
        box = tuple(slice(a, a + n) for a, n in zip(origin, size, strict=True))
        try:
            return np.asarray(self._data[(*self._lead, *box)]).astype(self.dtype, copy=False)
        except OSError as problem:
            raise DamagedStore(
                self.path,
                self._data.name,
                f"near {origin}",
                f"cannot be decoded ({problem})",
                "copy it again",
            ) from problem

    def read_into(self, box: np.ndarray, origin_zyx: ZyxLike) -> None:
        box[:] = self.read(origin_zyx, box.shape)


def open_hdf5(path: Path, options: ConvertOptions) -> OpenedFile:
    """The channels of an Imaris file, or of the one data set that an HDF5 file holds or --dataset names."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as problem:
        raise CanvasError(f"{path} is no readable HDF5 file: {problem}") from problem
    if _IMARIS in file:
        return _imaris(path, file, options.t)
    return _plain(path, file, options.dataset)


def _imaris(path: Path, file: Any, t: int | None) -> OpenedFile:
    times = file[_IMARIS]
    if t is None and len(times) > 1:
        raise CanvasError(f"{path} has {len(times)} time points: choose one with --t 0 to {len(times) - 1}")
    point = f"TimePoint {t or 0}"
    if point not in times:
        raise CanvasError(f"{path} has {len(times)} time points: there is no t={t}")
    channels, names = [], []
    for c in range(len(times[point])):
        group = times[point][f"Channel {c}"]
        shape = tuple(int(_text(group.attrs.get(f"ImageSize{axis}"))) for axis in "ZYX")
        channels.append(Hdf5Channel(path, group["Data"], (), whole_zyx(shape, "ImageSize")))
        about = file.get(f"DataSetInfo/Channel {c}")
        names.append((_text(about.attrs.get("Name")) if about is not None else "") or f"channel {c}")
    return OpenedFile(
        channels, names, _imaris_voxel_um(file["DataSetInfo/Image"].attrs, channels[0].shape_zyx)
    )


def _imaris_voxel_um(about: Any, shape_zyx: Sequence[int]) -> ZyxUm | None:
    """Extent over voxels of each axis; Imaris counts its axes from x."""
    if _text(about.get("Unit")).lower() not in ("um", "µm", "μm"):
        return None
    low, high = ([float(_text(about.get(f"Ext{end}{axis}"))) for axis in (2, 1, 0)] for end in ("Min", "Max"))
    return check_voxel_um([(b - a) / n for a, b, n in zip(low, high, shape_zyx, strict=True)])


def _text(value: Any) -> str:
    """Imaris keeps text as arrays of single bytes."""
    if value is None:
        return ""
    return (
        value.tobytes().decode("utf-8", "replace").strip("\0 ")
        if isinstance(value, np.ndarray)
        else str(value)
    )


def _plain(path: Path, file: Any, name: str | None) -> OpenedFile:
    import h5py

    held: dict[str, Any] = {}

    def see(key: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and len(item.shape) in (3, 4) and item.dtype.kind in "iuf":
            held[key] = item

    file.visititems(see)
    listing = ", ".join(f"{key} {item.shape} {item.dtype}" for key, item in held.items()) or "none"
    if name is None and len(held) != 1:
        raise CanvasError(f"{path} holds the images {listing}: choose one with --dataset")
    data = next(iter(held.values())) if name is None else held.get(name.strip("/"))
    if data is None:
        raise CanvasError(f"{path} has no image {name!r}; it holds {listing}")
    stated = next((data.attrs[key] for key in _SIZES if key in data.attrs), None)
    voxel_um = None if stated is None else check_voxel_um(list(stated))
    if len(data.shape) == 3:
        return OpenedFile([Hdf5Channel(path, data)], [data.name.strip("/")], voxel_um)
    if data.shape[0] > 16:
        raise CanvasError(
            f"{path}: {data.name} has shape {data.shape}; of four axes the first has to be the channels: "
            "transpose it to c, z, y, x"
        )
    channels = [Hdf5Channel(path, data, (c,)) for c in range(data.shape[0])]
    return OpenedFile(channels, [f"channel {c}" for c in range(len(channels))], voxel_um)
