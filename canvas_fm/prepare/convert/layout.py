"""Layout of a converted store: levels, chunks, shards, and the slabs of planes in which it is written."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from canvas_fm.data.store.compression import blosc, blosc_v2
from canvas_fm.data.store.ome.write import write_metadata
from canvas_fm.data.volume.writer import plan_levels, smaller_chunk
from canvas_fm.data.zyx import Zyx, ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import disk_full_as_error
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.sources.source import Source

_SHARD_YX = 512  # voxels: with 32 planes of 16 bits 16 MB before compression
_THIN = 8  # planes of a shard below which a coarser level is made from the one before, not slab by slab
_SMALLEST = 256  # a pyramid ends where no axis is longer
_SLAB_SHARE = 0.45  # of the memory: beside a slab lie its coarser levels and what is being decoded and packed


@dataclass(frozen=True)
class Level:
    """One level: `factor` to the one before, `planes` of a slab; `with_slabs`: made with level 0's."""

    shape_zyx: Zyx
    voxel_um: ZyxUm
    factor: Zyx
    chunk_zyx: Zyx
    shard_zyx: Zyx
    planes: int
    with_slabs: bool


@dataclass(frozen=True)
class Layout:
    """Levels, type and version of a store; `slab` planes are read, corrected and written at once."""

    levels: tuple[Level, ...]
    channels: int
    dtype: np.dtype
    ome: str
    slab: int

    @property
    def has_c(self) -> bool:
        """Whether the arrays have an axis c before z, y, x."""
        return self.channels > 1

    def starts(self, level: int) -> range:
        """The first planes of the slabs of a level."""
        return range(0, self.levels[level].shape_zyx[0], self.levels[level].planes)

    def planes(self, level: int, start: int) -> int:
        """Planes of the slab of a level that begins there: fewer in the last one."""
        of = self.levels[level]
        return min(of.planes, of.shape_zyx[0] - start)

    @property
    def slabs(self) -> int:
        """Slabs of level 0 of all channels."""
        return len(self.starts(0)) * self.channels

    def slab_of(self, number: int) -> tuple[int, int, int]:
        """Channel, first plane and planes of a slab of level 0."""
        channel, at = divmod(number, len(self.starts(0)))
        start = self.starts(0)[at]
        return channel, start, self.planes(0, start)

    def key(self, level: int, channel: int, index_zyx: Zyx) -> str:
        """The file of a shard (of a chunk in 0.4) by its place among all of them."""
        place = "/".join(map(str, (channel, *index_zyx) if self.has_c else index_zyx))
        return f"{level}/c/{place}" if self.ome == "0.5" else f"{level}/{place}"

    def identity(self) -> dict[str, Any]:
        """All that decides the bytes of the store's files."""
        shapes = [[*level.shape_zyx, *level.chunk_zyx, *level.shard_zyx] for level in self.levels]
        return {"dtype": str(self.dtype), "ome": self.ome, "slab": self.slab, "levels": shapes}


def plan(source: Source, options: ConvertOptions) -> Layout:
    """The layout of a conversion within the memory; CanvasError where a single plane does not fit."""
    dtype = source.dtype
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise CanvasError(
            f"{source.path} holds {dtype} values; a volume holds integers or floats up to 64 bits"
        )
    if options.labels and dtype.kind == "f":
        raise CanvasError(f"{source.path} holds {dtype} values; labels are integers: leave --labels out")
    slab = _slab(source, options)
    planned = plan_levels(source.shape_zyx, source.voxel_um, options.levels or 16)
    if options.levels is None:
        small = (at for at, (shape, _, _) in enumerate(planned) if max(shape) <= _SMALLEST)
        planned = planned[: next(small, len(planned) - 1) + 1]
    levels, depth, with_slabs = [], slab, True
    for shape, voxel, factor in planned:
        with_slabs = with_slabs and depth % factor[0] == 0 and depth // factor[0] >= min(_THIN, slab)
        depth = depth // factor[0] if with_slabs else options.chunk_zyx[0]
        levels.append(_level(shape, voxel, factor, depth, with_slabs, options))
    return Layout(tuple(levels), len(source.channels), dtype, options.ome, slab)


def _level(
    shape: Zyx, voxel: ZyxUm, factor: Zyx, depth: int, with_slabs: bool, options: ConvertOptions
) -> Level:
    chunk_z = math.gcd(options.chunk_zyx[0], depth)
    chunk = smaller_chunk((chunk_z, *options.chunk_zyx[1:]), shape)
    if options.ome == "0.4":
        return Level(shape, voxel, factor, chunk, chunk, depth, with_slabs)
    wanted = (depth, max(_SHARD_YX, chunk[1]), max(_SHARD_YX, chunk[2]))
    z, y, x = (
        c * max(1, min(w // c, math.ceil(n / c))) for c, w, n in zip(chunk, wanted, shape, strict=True)
    )
    return Level(shape, voxel, factor, chunk, (z, y, x), depth, with_slabs)


def _slab(source: Source, options: ConvertOptions) -> int:
    """Planes of a slab: whole chunks of the source where they fit, else of ours, halved until they do."""
    room = options.memory_gb * 1e9 * _SLAB_SHARE
    plane = math.prod(source.shape_zyx[1:]) * source.dtype.itemsize
    if plane > room:
        raise CanvasError(
            f"a plane of {source.path} has {plane / 1e9:.2f} GB; give --memory-gb "
            f"{plane / 1e9 / _SLAB_SHARE:.1f} or more"
        )
    chunk, stored = options.chunk_zyx[0], source.channels[0].chunk_zyx[0]
    slab = math.lcm(chunk, stored)
    if slab > 4 * chunk or slab * plane > room:
        slab = chunk
    while slab * plane > room:
        slab = slab // 2 if slab % 2 == 0 else 1
    return slab


def make_store(root: Path, layout: Layout) -> None:
    """Create a store of empty arrays, which takes its name when all are there; what was there is deleted."""
    new = root.with_name(f"{root.name}.new")
    for old in (new, root):
        shutil.rmtree(old, ignore_errors=True)
    with disk_full_as_error(root):
        _make_arrays(new, layout)
        new.replace(root)


def has_arrays(root: Path, layout: Layout) -> bool:
    """Whether the metadata of every level can be read: a kill or a power cut may have been before."""
    if not root.exists():
        return False
    try:
        return len(open_arrays(root, layout)) > 0
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # what zarr raises for none and for torn
        return False


def _make_arrays(root: Path, layout: Layout) -> None:
    """Create the empty arrays of a store, as zarr-python writes their metadata."""
    lead = ([layout.channels], [1], ["c"]) if layout.has_c else ([], [], [])
    for at, level in enumerate(layout.levels):
        shared: dict[str, Any] = {
            "store": LocalStore(root),
            "name": str(at),
            "shape": (*lead[0], *level.shape_zyx),
            "dtype": layout.dtype,
            "chunks": (*lead[1], *level.chunk_zyx),
            "fill_value": 0,
            "overwrite": True,
        }
        if layout.ome == "0.4":
            keys: Any = {"name": "v2", "separator": "/"}
            zarr.create_array(**shared, compressors=blosc_v2(), chunk_key_encoding=keys, zarr_format=2)
            continue
        zarr.create_array(
            **shared,
            shards=(*lead[1], *level.shard_zyx),
            compressors=[blosc(layout.dtype), Crc32cCodec()],
            dimension_names=(*lead[2], "z", "y", "x"),
            zarr_format=3,
        )


def open_arrays(root: Path, layout: Layout) -> list[zarr.Array]:
    """The arrays of all levels, for reading."""
    store = LocalStore(root, read_only=True)
    number: Any = 3 if layout.ome == "0.5" else 2
    return [
        zarr.open_array(store, path=str(at), mode="r", zarr_format=number) for at in range(len(layout.levels))
    ]


def image_metadata(layout: Layout, name: str) -> dict[str, Any]:
    """The OME attributes: levels, axes and voxel sizes."""
    whole = layout.levels[0].voxel_um
    listed = []
    for at, level in enumerate(layout.levels):
        first = [(size - finest) / 2 for size, finest in zip(level.voxel_um, whole, strict=True)]
        listed.append((str(at), level.voxel_um, first))
    return write_metadata(listed, name, version=layout.ome, channels=layout.has_c)


def shards_of(
    level: Level, planes: int, rows: int | None = None
) -> Iterator[tuple[Zyx, tuple[slice, slice, slice]]]:
    """Index (z and y from 0) and box of each shard of a slab of so many planes, or of rows of it."""
    steps = level.shard_zyx
    shape = (planes, level.shape_zyx[1] if rows is None else rows, level.shape_zyx[2])
    for z, y, x in itertools.product(*(range(math.ceil(n / s)) for n, s in zip(shape, steps, strict=True))):
        low = (z * steps[0], y * steps[1], x * steps[2])
        a, b, c = (slice(at, min(at + s, n)) for at, s, n in zip(low, steps, shape, strict=True))
        yield (z, y, x), (a, b, c)
