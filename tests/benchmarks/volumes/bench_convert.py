"""Conversion of TIFF planes: CPU seconds against five limits in one run, and peak memory at two sizes.

A limit decodes every plane and packs chunks, as `convert` does; none writes a file or finds a window. The
first is what the store holds: checksums of every source file and every level packed, whose means are taken
of the first slab alone. The second is the same without checksums; `convert` is held against it with BLAKE3,
with sha256 and with `--checksums none`. For uncompressed planes a stricter one reads them in strips of rows,
as `convert` does, in place of whole planes. Another is a script of `tifffile.imread` and numcodecs' Blosc in
its own block size, every level. The harshest packs the finest level alone. Beside them TensorStore, writing
the finest level alone with the same codec, chunks and shards on as many threads. Each process starts with a
small conversion, so that no import is counted. `CANVAS_FM_BENCH_PLANES=480` makes it larger (planes of 2048
× 2048 voxels, 8.4 MB each); the second size is twice the first. Planes are links to as many files as a slab
has planes, so that the disk holds little and no chunk holds a plane twice, which would pack faster.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

from canvas_fm.data.store.compression import BLOCK_BYTES
from canvas_fm.data.volume.levels.downsample import mean_down
from canvas_fm.files.checksum import fastest_algorithm, file_checksum
from canvas_fm.prepare.convert.convert import convert
from canvas_fm.prepare.convert.layout import Layout, Level, plan, shards_of
from canvas_fm.prepare.convert.reading.plane_strips import strip_rows
from canvas_fm.prepare.convert.shards.packer import Packer
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.sources.source import Source, open_source
from canvas_fm.prepare.workers.cores import usable_cores

SIDE, LIMIT_GB, FILES = 2048, 2.0, 32
UM = (4.0, 1.8, 1.8)


class Taken(NamedTuple):
    """Seconds on the clock and of all cores, and the peak memory in GB."""

    seconds: float
    cpu: float
    peak_gb: float


def write_source(folder: Path, planes: int, compression: str | None) -> Path:
    """Tissue-like planes: a slow cloud and photon noise; a slab's files, linked again and again."""
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = 150 + 60 * np.sin(np.arange(SIDE) / 200)[:, None] * np.cos(np.arange(SIDE) / 300)
    how: dict[str, Any] = {"compression": compression, "compressionargs": {"level": 1}} if compression else {}
    for z in range(min(FILES, planes)):
        tifffile.imwrite(folder / f"plane_{z:05d}.tif", random.poisson(rows).astype(np.uint16), **how)
    for z in range(FILES, planes):
        (folder / f"plane_{z:05d}.tif").hardlink_to(folder / f"plane_{z % FILES:05d}.tif")
    return folder


def opened(source: str) -> tuple[Source, Layout]:
    found = open_source(source, ConvertOptions.of(voxel_um=UM))
    return found, plan(found, ConvertOptions.of())


def read_and_pack(source: str, out: str, threads: int) -> None:
    """The harshest limit: decode every plane, pack every chunk of the finest level."""
    _limit(source, threads, levels=1, hashed=False)


def read_and_pack_levels(source: str, out: str, threads: int) -> None:
    """The limit without checksums: decode every plane, pack every level."""
    _limit(source, threads, levels=None, hashed=False)


def read_strips_and_pack_levels(source: str, out: str, threads: int) -> None:
    """The limit without checksums of planes that are read in strips, which take less memory."""
    _limit(source, threads, levels=None, hashed=False, rows=strip_rows(opened(source)[1], threads))


def read_hash_and_pack_levels(source: str, out: str, threads: int) -> None:
    """The limit of what the store holds: decode every plane, hash every file, pack every level."""
    _limit(source, threads, levels=None, hashed=True)


def plain_tools(source: str, out: str, threads: int) -> None:
    """The limit of a script without this package: `tifffile.imread`, and numcodecs' Blosc as it is set."""
    import numcodecs

    numcodecs.blosc.use_threads = False  # threads are those of the pool, as in all of these
    codec = numcodecs.Blosc(cname="zstd", clevel=1, shuffle=numcodecs.Blosc.SHUFFLE)
    _limit(source, threads, levels=None, hashed=False, codec=codec)


def _limit(
    source: str, threads: int, *, levels: int | None, hashed: bool, codec: Any = None, rows: int = SIDE
) -> None:
    """Slabs are alike, as planes are the same files again: the means of the first are those of all."""
    found, layout = opened(source)
    channel, depth, local = found.channels[0], found.shape_zyx[0], threading.local()
    slabs, made = [np.empty((layout.slab, rows, SIDE), layout.dtype)], layout.levels[:levels]
    shape: Sequence[int] = layout.slab, SIDE, SIDE
    for level in made[1:]:
        shape = [math.ceil(n / f) for n, f in zip(shape, level.factor, strict=True)]
        slabs.append(np.empty(shape, layout.dtype))

    def read(z: int) -> None:
        if codec is not None:
            slabs[0][z - start] = tifffile.imread(found.files[z])
        elif rows < SIDE:
            places[z - start].read_rows(slabs[0][z - start], y)
        else:
            channel.read_into(slabs[0][z - start : z - start + 1], (z, 0, 0))

    def pack(piece: tuple[Level, np.ndarray]) -> None:
        if codec is not None:
            level, voxels = piece
            grid = [math.ceil(n / c) for n, c in zip(voxels.shape, level.chunk_zyx, strict=True)]
            for place in np.ndindex(*grid):
                box = tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, level.chunk_zyx, strict=True))
                codec.encode(np.ascontiguousarray(voxels[box]))
            return
        if not hasattr(local, "packer"):
            local.packer = Packer()
        local.packer.shard(piece[1], piece[0].chunk_zyx, piece[0].shard_zyx)

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, depth, layout.slab):
            planes = range(start, min(start + layout.slab, depth))
            files = found.files[planes.start : planes.stop] if hashed else []
            hashes = pool.map(lambda file: file_checksum(file, fastest_algorithm()), files)
            places = list(pool.map(found.channels[0].plane_bytes, planes)) if rows < SIDE else []
            for y in range(0, SIDE, rows):
                list(pool.map(read, planes))
                if start == 0 and len(made) > 1:
                    at = y // made[1].factor[1]
                    coarse = slabs[1][:, at : at + rows // made[1].factor[1]]
                    mean_down(slabs[0], made[1].factor, out=coarse)
                list(
                    pool.map(
                        pack, [(made[0], slabs[0][box]) for _, box in shards_of(made[0], len(planes), rows)]
                    )
                )
            if start == 0:
                for finer, coarse, level in zip(slabs[1:], slabs[2:], made[2:], strict=False):
                    mean_down(finer, level.factor, out=coarse)
            pieces = [
                (level, slab[box])
                for level, slab in zip(made[1:], slabs[1:], strict=True)
                for _, box in shards_of(level, math.ceil(len(planes) * len(slab) / layout.slab))
            ]
            list(pool.map(pack, pieces))
            list(hashes)


def tensorstore_alone(source: str, out: str, threads: int) -> None:
    """The finest level as TensorStore writes it: no pyramid, no checksum of a source, nothing flushed."""
    import tensorstore as ts

    found, layout = opened(source)
    level, files = layout.levels[0], [str(file) for file in found.files]
    blosc = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "typesize": 2, "blocksize": BLOCK_BYTES}
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    codecs += [{"name": "blosc", "configuration": blosc}, {"name": "crc32c"}]
    sharding = {"chunk_shape": level.chunk_zyx, "codecs": codecs}
    metadata = {
        "shape": found.shape_zyx,
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": level.shard_zyx}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    context = {"data_copy_concurrency": {"limit": threads}, "file_io_concurrency": {"limit": threads}}
    context["file_io_sync"] = False
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": out}, "metadata": metadata}
    store = ts.open({**spec, "create": True, "context": context}).result()
    slab = np.empty((layout.slab, SIDE, SIDE), np.uint16)

    def read(z: int) -> None:
        slab[z - start] = tifffile.imread(files[z])

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), layout.slab):
            stop = min(start + layout.slab, len(files))
            list(pool.map(read, range(start, stop)))
            store[start:stop].write(slab[: stop - start]).result()


def whole(source: str, out: str, threads: int) -> None:
    convert(source, out, voxel_um=UM, threads=threads, progress=False)


def with_sha256(source: str, out: str, threads: int) -> None:
    convert(source, out, voxel_um=UM, threads=threads, checksums="sha256", progress=False)


def no_checksums(source: str, out: str, threads: int) -> None:
    convert(source, out, voxel_um=UM, threads=threads, checksums="none", progress=False)


def one_level(source: str, out: str, threads: int) -> None:
    convert(source, out, voxel_um=UM, threads=threads, levels=1, checksums="none", progress=False)


def measure(work: Callable[[str, str, int], None], source: str, out: str, threads: int) -> Taken:
    first = Path(out).with_name("first")
    first.mkdir()
    (first / "plane_0.tif").hardlink_to(min(Path(source).iterdir()))
    whole(str(first), str(first / "a.zarr"), threads)
    began, cpu = time.perf_counter(), time.process_time()
    work(source, out, threads)
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    return Taken(time.perf_counter() - began, time.process_time() - cpu, peak)


def alone(work: Callable[[str, str, int], None], source: Path, threads: int) -> Taken:
    """Measured in a process of its own, on files that are in memory."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=source.parent) as folder, spawn.Pool(1) as pool:
        return pool.apply(measure, (work, str(source), str(Path(folder) / "a.zarr"), threads))


LIMITS = {
    read_hash_and_pack_levels: "reading, BLAKE3 and packing every level",
    read_and_pack_levels: "reading and packing every level",
    read_strips_and_pack_levels: "reading in strips and packing every level",
    plain_tools: "tifffile and numcodecs' Blosc as it is set, every level",
    read_and_pack: "reading and packing the finest level",
}
NAMES = {
    whole: "convert",
    with_sha256: "convert --checksums sha256",
    no_checksums: "convert --checksums none",
    one_level: "one level, no checksums",
    tensorstore_alone: "TensorStore, finest level",
}
COMPARED = (
    (whole, read_hash_and_pack_levels),
    (whole, read_and_pack_levels),
    (whole, read_strips_and_pack_levels),
    (with_sha256, read_and_pack_levels),
    (no_checksums, read_and_pack_levels),
    (whole, plain_tools),
    (whole, read_and_pack),
    (one_level, read_and_pack),
    (tensorstore_alone, read_and_pack),
)
MEASURED = (read_hash_and_pack_levels, read_strips_and_pack_levels, whole, read_and_pack_levels)
MEASURED += (with_sha256, no_checksums)
MEASURED += (plain_tools, read_and_pack, one_level, tensorstore_alone)


def main() -> None:
    from tests.benchmarks.timing import show  # torch, which each process would load

    planes, threads = int(os.environ.get("CANVAS_FM_BENCH_PLANES", "120")), usable_cores()
    for compression in (None, "zlib"):
        rows = []
        for count in (planes, 2 * planes):
            with tempfile.TemporaryDirectory() as folder:
                source, size = Path(folder) / "planes", count * SIDE * SIDE * 2 / 1e9
                write_source(source, count, compression)
                measured = [work for work in MEASURED if compression is None or "strips" not in work.__name__]
                taken = {work: alone(work, source, threads) for work in measured}
            for ours, limit in COMPARED:
                if limit not in taken:
                    continue
                share = taken[limit].cpu / taken[ours].cpu
                cpu = (
                    f"CPU {taken[ours].cpu:.1f} s, {share:.2f} of {LIMITS[limit]} ({taken[limit].cpu:.1f} s)"
                )
                rate = f"{size / taken[ours].seconds:.2f} GB/s"
                rows.append((f"{size:.1f} GB, {NAMES[ours]}", rate, cpu))
            peak = taken[whole].peak_gb
            held = "held" if peak < LIMIT_GB else "NOT HELD"
            rows.append(("peak memory", f"{peak:.2f} GB", f"limit {LIMIT_GB:g} GB: {held}"))
        show(f"Conversion of TIFF planes, {compression or 'no compression'}, {threads} threads", rows)


if __name__ == "__main__":
    main()
