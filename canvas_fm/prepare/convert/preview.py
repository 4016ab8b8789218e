"""Dry run of a conversion: sizes, bytes and minutes estimated from a few planes."""

from __future__ import annotations

import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from canvas_fm.files.option_sets import takes
from canvas_fm.prepare.convert.layout import plan, shards_of
from canvas_fm.prepare.convert.shards.packer import Packer
from canvas_fm.prepare.convert.write_slabs import Slabs
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.corrections.sample_planes import corrections_of
from canvas_fm.prepare.sources.source import open_source
from canvas_fm.prepare.workers.cores import usable_cores

_PLANES = 32  # that are read and packed; fewer where a slab has fewer


@takes(ConvertOptions)
def preview_conversion(source: str | Path, out: str | Path, **options: Any) -> dict[str, Any]:
    """Sizes, layout, and an estimate of bytes and minutes from planes of the middle; nothing is written.

    The estimate counts reading, correcting and packing, not the disk that is written to.
    """
    opts = ConvertOptions.of(**options)
    opened = open_source(source, opts)
    layout = plan(opened, opts)
    threads = opts.threads or usable_cores()
    finest, depth = layout.levels[0], opened.shape_zyx[0]
    planes = min(layout.slab, depth, _PLANES)
    start = max(0, depth // 2 - planes)
    corrections = corrections_of(opened, opts)
    packed, seconds = 0, 0.0
    with (
        Slabs(
            opened,
            layout,
            corrections,
            labels=opts.labels,
            checksums=None,
            threads=threads,
            memory_gb=opts.memory_gb,
        ) as slabs,
        ThreadPoolExecutor(threads) as pool,
    ):
        for channel in range(layout.channels):
            began = time.perf_counter()
            slab = slabs.read(channel, start, start + planes)
            shards = pool.map(
                lambda part, slab=slab: len(
                    Packer().shard(slab[part[1]], finest.chunk_zyx, finest.shard_zyx) or b""
                ),
                shards_of(finest, planes),
            )
            packed += sum(shards)
            seconds += time.perf_counter() - began
    voxels = [math.prod(level.shape_zyx) for level in layout.levels]
    whole = sum(voxels) / (planes * math.prod(opened.shape_zyx[1:]))
    place = next(folder for folder in (Path(out), *Path(out).resolve().parents) if folder.is_dir())
    return {
        "source": str(opened.path),
        "out": str(out),
        "channels": list(opened.names),
        "shape_zyx": list(opened.shape_zyx),
        "dtype": str(opened.dtype),
        "voxel_um": list(opened.voxel_um),
        "levels": [list(level.shape_zyx) for level in layout.levels],
        "chunk_zyx": list(finest.chunk_zyx),
        "shard_zyx": list(finest.shard_zyx),
        "bytes_in": voxels[0] * layout.channels * opened.dtype.itemsize,
        "bytes_out": int(packed * whole),
        "bytes_free": shutil.disk_usage(place).free,
        "minutes": seconds * whole / 60,
        "threads": threads,
    }
