"""Writing a volume: sharded OME-Zarr 0.5 with checksums and pyramid; the completion mark comes last."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from jaxtyping import Shaped
from numpy.typing import DTypeLike
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from canvas_fm.data.store.checked_store import NAMESPACE, write_manifest
from canvas_fm.data.store.compression import blosc
from canvas_fm.data.store.files import volume_name
from canvas_fm.data.store.ome.write import write_metadata
from canvas_fm.data.volume.levels.downsample import mean_down
from canvas_fm.data.volume.window import DEFAULT_RULE, find_window
from canvas_fm.data.zyx import Zyx, ZyxLike, ZyxUm, ZyxUmLike, check_voxel_um, stop_inside, whole_zyx
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import disk_full_as_error, write_atomic

CHUNK_ZYX = (32, 64, 64)
SHARD_CHUNKS = 4


def create(
    path: str | Path,
    shape_zyx: ZyxLike,
    voxel_um: ZyxUmLike,
    dtype: DTypeLike,
    chunk_zyx: ZyxLike,
    shard_zyx: ZyxLike | None,
    marker: str | None,
    source: str | None,
    levels: int,
) -> VolumeWriter:
    """Implementation of `Volume.create`; all arguments are validated before anything is written."""
    path = Path(path)
    shape, chunk = whole_zyx(shape_zyx, "shape_zyx"), whole_zyx(chunk_zyx, "chunk_zyx")
    if min(shape) < 1 or min(chunk) < 1:
        raise CanvasError(f"shape_zyx is {shape} and chunk_zyx {chunk}; expected sizes of at least 1")
    try:
        kind = np.dtype(dtype).newbyteorder("=")
    except TypeError as problem:
        raise CanvasError(f"dtype is {dtype!r}; a volume holds integers or floats up to 64 bits") from problem
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise CanvasError(f"dtype is {kind}; a volume holds integers or floats up to 64 bits")
    if levels < 1:
        raise CanvasError(f"levels is {levels}; expected at least 1, the volume itself")
    chunk = smaller_chunk(chunk, shape)
    if shard_zyx is None:
        shard = _shard(chunk, (SHARD_CHUNKS,) * 3, shape)
    else:
        shard = whole_zyx(shard_zyx, "shard_zyx")
        if any(s < 1 or s % c for s, c in zip(shard, chunk, strict=True)):
            raise CanvasError(f"shard_zyx is {shard}; expected multiples of the chunk {chunk}")
    if path.exists() or path.is_symlink():
        raise CanvasError(f"{path} exists already; delete it or choose another name")
    return VolumeWriter(path, shape, check_voxel_um(voxel_um), kind, chunk, shard, marker, source, levels)


class VolumeWriter:
    """Writes boxes of a volume in any order; `close` it, or use it as a context manager.

    Boxes that are whole shards (`shard_zyx`) are fastest: any other reads, merges and writes its shards
    again. What is never written is zero. Safe in several threads, one write at a time. Until `close` has
    written pyramid, window and manifest, and the mark `complete` last, the store refuses to open; leaving
    the `with` block by an exception deletes it. Raises StorageFull on a full disk.
    """

    def __init__(
        self,
        path: Path,
        shape_zyx: Zyx,
        voxel_um: ZyxUm,
        dtype: np.dtype,
        chunk_zyx: Zyx,
        shard_zyx: Zyx,
        marker: str | None,
        source: str | None,
        levels: int,
    ) -> None:
        self.path, self.shape_zyx, self.dtype, self.voxel_um = path, shape_zyx, dtype, voxel_um
        self.chunk_zyx, self.shard_zyx = chunk_zyx, shard_zyx
        self._closed = False
        self._lock = threading.Lock()
        self._levels = plan_levels(shape_zyx, voxel_um, levels)
        self._ours: dict[str, Any] = {"source": source, "marker": marker, "complete": False}
        with disk_full_as_error(path):
            try:
                path.mkdir(parents=True)
            except (FileExistsError, NotADirectoryError, PermissionError) as problem:
                raise CanvasError(f"{path} cannot be made: {problem.strerror}") from problem
            self._write_group(self._group_json())
            self._arrays = [self._new_array(str(at), shape) for at, (shape, _, _) in enumerate(self._levels)]

    def _new_array(self, name: str, shape: Zyx) -> zarr.Array:
        chunk = smaller_chunk(self.chunk_zyx, shape)
        chunks_each = [s // c for s, c in zip(self.shard_zyx, self.chunk_zyx, strict=True)]
        return zarr.create_array(
            LocalStore(self.path),
            name=name,
            shape=shape,
            dtype=self.dtype,
            chunks=chunk,
            shards=_shard(chunk, chunks_each, shape),
            compressors=[blosc(self.dtype), Crc32cCodec()],
            fill_value=0,
            dimension_names=("z", "y", "x"),
            zarr_format=3,
        )

    def write(self, origin_zyx: ZyxLike, voxels: Shaped[np.ndarray, "*shape"]) -> None:
        """Write a box (z, y, x) whose first voxel is `origin_zyx`; it must lie inside the volume.

        The voxels' type has to fit the volume's without loss. Raises CanvasError for that, for a box that
        leaves the volume, and for NaN.
        """
        origin = whole_zyx(origin_zyx, "origin_zyx")
        if self._closed:
            raise CanvasError(f"{self.path} is closed; nothing more can be written")
        if voxels.ndim != 3:
            raise CanvasError(f"voxels have shape {voxels.shape}; expected three axes: z, y, x")
        stop_inside(origin, voxels.shape, self.shape_zyx, "the volume")
        if not np.can_cast(voxels.dtype, self.dtype, "safe"):
            raise CanvasError(
                f"voxels are {voxels.dtype}; this volume holds {self.dtype}: convert them first"
            )
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            raise CanvasError(f"the box at {origin} holds NaN or infinite values; replace them first")
        self._put(0, origin, voxels)

    def _put(self, level: int, origin: Sequence[int], voxels: np.ndarray) -> None:
        where = tuple(slice(a, a + n) for a, n in zip(origin, voxels.shape, strict=True))
        with self._lock, disk_full_as_error(self.path):
            self._arrays[level][where] = voxels.astype(self.dtype, copy=False)

    def close(self) -> None:
        """Finish the store: pyramid, window, manifest, and last the completion mark."""
        if self._closed:
            return
        self._closed = True
        for level in range(1, len(self._levels)):
            self._downsample(level)
        self._ours |= {"window": self._window(), "window_rule": str(DEFAULT_RULE), "complete": True}
        content = self._group_json()
        with disk_full_as_error(self.path):
            write_manifest(self.path, {"zarr.json": content})
            self._write_group(content)

    def _window(self) -> list[float] | None:
        """Intensity window, None if undefined, as in an empty mask."""

        def read(start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
            return np.asarray(self._arrays[0][tuple(slice(a, b) for a, b in zip(start, stop, strict=True))])

        try:
            return list(find_window(str(self.path), read, self.shape_zyx, self.chunk_zyx, self.dtype, 0))
        except CanvasError:
            return None

    def _downsample(self, level: int) -> None:
        """Write a level as block means of the previous one, shard by shard."""
        shape, _, factor = self._levels[level]
        finer, array = self._arrays[level - 1], self._arrays[level]
        step = array.shards or array.chunks
        for low in itertools.product(*(range(0, n, s) for n, s in zip(shape, step, strict=True))):
            box = tuple(slice(a * f, (a + s) * f) for a, s, f in zip(low, step, factor, strict=True))
            self._put(level, low, mean_down(np.asarray(finer[box]), factor))

    def _group_json(self) -> bytes:
        listed = []
        for at, (_, voxel, _) in enumerate(self._levels):
            first = [(size - whole) / 2 for size, whole in zip(voxel, self.voxel_um, strict=True)]
            listed.append((str(at), voxel, first))
        attributes = {"ome": write_metadata(listed, volume_name(self.path)), NAMESPACE: self._ours}
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        return json.dumps(group, indent=2).encode()

    def _write_group(self, content: bytes) -> None:
        write_atomic(self.path / "zarr.json", lambda temporary: temporary.write_bytes(content))

    def __enter__(self) -> VolumeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if problem is None:
                self.close()
                return
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        self._closed = True
        shutil.rmtree(self.path, ignore_errors=True)


def plan_levels(shape_zyx: Zyx, voxel_um: ZyxUm, levels: int) -> list[tuple[Zyx, ZyxUm, Zyx]]:
    """Shape, voxel size and downsampling factor of each level of a pyramid.

    An axis is halved unless its voxel is already twice the smallest: 4 × 1.8 × 1.8 µm becomes 4 × 3.6 × 3.6,
    then 8 × 7.2 × 7.2. A level where nothing is left to halve ends the pyramid.
    """
    planned = [(shape_zyx, voxel_um, (1, 1, 1))]
    for _ in range(levels - 1):
        shape, voxel, _ = planned[-1]
        if max(shape) == 1:
            break
        smallest = min(size for size, n in zip(voxel, shape, strict=True) if n > 1)
        z, y, x = (2 if n > 1 and size < 2 * smallest else 1 for size, n in zip(voxel, shape, strict=True))
        factor = (z, y, x)
        planned.append(
            (
                whole_zyx([math.ceil(n / f) for n, f in zip(shape, factor, strict=True)], "shape"),
                check_voxel_um([size * f for size, f in zip(voxel, factor, strict=True)]),
                factor,
            )
        )
    return planned


def smaller_chunk(chunk: Zyx, shape: Zyx) -> Zyx:
    """The chunk, no longer than the array on any axis."""
    z, y, x = (min(c, n) for c, n in zip(chunk, shape, strict=True))
    return z, y, x


def _shard(chunk: Zyx, chunks_each: Sequence[int], shape: Zyx) -> Zyx:
    """Shard shape: as many whole chunks as wanted on each axis, at most the shape's."""
    z, y, x = (c * min(k, math.ceil(n / c)) for c, k, n in zip(chunk, chunks_each, shape, strict=True))
    return z, y, x
