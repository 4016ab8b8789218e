"""A volume as an array: slicing in the manner of numpy, whole as numpy, lazily as dask or xarray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Num

from canvas_fm.data.zyx import Zyx, ZyxLike, ZyxUm
from canvas_fm.errors import CanvasError, MissingExtra


@runtime_checkable
class Boxes(Protocol):
    """Protocol: what slicing needs of a volume."""

    name: str
    shape_zyx: Zyx
    chunk_zyx: Zyx
    dtype: np.dtype
    voxel_um: ZyxUm
    marker: str | None

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> Num[np.ndarray, "z y x"]: ...


def read_padded(
    read: Callable[[Sequence[int], Sequence[int]], np.ndarray],
    origin: Zyx,
    size: Zyx,
    shape_zyx: Zyx,
    dtype: np.dtype,
) -> Num[np.ndarray, "z y x"]:
    """A box that may reach outside, where it is zero; `read(start, stop)` reads what lies inside."""
    start = [max(a, 0) for a in origin]
    stop = [min(a + s, n) for a, s, n in zip(origin, size, shape_zyx, strict=True)]
    inner = tuple(b - a for a, b in zip(start, stop, strict=True))
    if inner == size and min(size) > 0:
        return read(start, stop)
    try:
        box = np.zeros(size, dtype)
    except (MemoryError, ValueError) as problem:
        raise CanvasError(f"a box of {size} voxels does not fit in memory") from problem
    if min(inner) > 0:
        place = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))
        box[place] = read(start, stop)
    return box


def read_slice(volume: Boxes, key: Any) -> Num[np.ndarray, ...]:
    """`volume[z0:z1, y, ...]`: whole numbers, slices and `...` as in numpy, reading the box alone.

    Steps above 0 are taken after reading. Raises IndexError for a number outside, CanvasError for masks,
    lists and new axes.
    """
    parts = list(key) if isinstance(key, tuple) else [key]
    if sum(part is Ellipsis for part in parts) > 1 or sum(part is not Ellipsis for part in parts) > 3:
        raise CanvasError(f"a volume has three axes z, y, x; {key!r} has too many")
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)
    gap = next(at for at, part in enumerate(parts) if part is Ellipsis)
    parts[gap : gap + 1] = [slice(None)] * (4 - len(parts))
    start, size, after = [], [], []
    for part, length in zip(parts, volume.shape_zyx, strict=True):
        low, count, within = _span(part, length)
        start.append(low)
        size.append(count)
        after.append(within)
    return volume.read((start[0], start[1], start[2]), (size[0], size[1], size[2]))[tuple(after)]


def _span(part: Any, length: int) -> tuple[int, int, Any]:
    """First voxel and number of voxels to read of one axis, and what to take of them."""
    if isinstance(part, slice):
        low, high, step = part.indices(length)
        if step < 1:
            raise CanvasError(f"slices of a volume have steps above 0; {part} goes backwards: flip the array")
        return low, max(high - low, 0), slice(None, None, step)
    if isinstance(part, int | np.integer) and not isinstance(part, bool | np.bool_):
        index = int(part) + (length if part < 0 else 0)
        if not 0 <= index < length:
            raise IndexError(f"{part} lies outside an axis of {length} voxels")
        return index, 1, 0
    raise CanvasError(
        f"a volume is indexed by whole numbers and slices, not by {type(part).__name__}: read a box, "
        "then index that"
    )


def as_dask(volume: Boxes) -> Any:
    """The volume as a dask array, a task for each chunk, read when it is computed."""
    try:
        import dask.array as da
    except ImportError as problem:
        raise MissingExtra("dask", "xarray", "Volume.to_dask") from problem
    empty = np.empty((0, 0, 0), volume.dtype)
    return da.from_array(volume, chunks=volume.chunk_zyx, name=False, asarray=False, meta=empty)


def as_xarray(volume: Boxes) -> Any:
    """The volume as a lazy xarray.DataArray with dimensions z, y, x in micrometres."""
    try:
        import xarray
    except ImportError as problem:
        raise MissingExtra("xarray", "xarray", "Volume.to_xarray") from problem
    coords = {
        axis: (axis, np.arange(n) * um, {"units": "micrometer"})
        for axis, n, um in zip("zyx", volume.shape_zyx, volume.voxel_um, strict=True)
    }
    attributes = {"voxel_um": volume.voxel_um, "marker": volume.marker}
    return xarray.DataArray(as_dask(volume), coords, list("zyx"), volume.name, attributes)
