"""Tiles of the page's volume view: milliseconds of one, never read before and read again, at every level.

CPU milliseconds of all threads, from the stored chunks to the PNG; HTTP adds to that what any route adds. The
volume has 270 million voxels, with a pyramid of four levels; `CANVAS_FM_BENCH_PLANES=64` makes it smaller.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from canvas_fm.data.volume.volume import Volume
from serving.core.volumes.thumbnails import png
from serving.core.volumes.tiles import SIDE, Tiles, shown
from serving.protocol.request_options import TileQuery
from tests.benchmarks.timing import show

SLAB = 128
MOST = 48  # tiles of a level


def write(path: Path, planes: int) -> Volume:
    random = np.random.default_rng(0)
    slab = random.poisson(200, (SLAB, 1024, 1024)).astype(np.uint16)
    with Volume.create(path, (planes, 1024, 1024), voxel_um=(4.0, 1.8, 1.8), levels=4) as writer:
        for z in range(0, planes, SLAB):
            writer.write((z, 0, 0), slab[: planes - z])
    return Volume.open(path)


def milliseconds(tiles: Tiles, volume: Volume, queries: list[TileQuery]) -> np.ndarray:
    low, high = volume.window
    taken = []
    for query in queries:
        start = time.process_time()
        png(shown(tiles.get("a", volume, query), low, high))
        taken.append(1000 * (time.process_time() - start))
    return np.array(taken)


def main() -> None:
    planes = int(os.environ.get("CANVAS_FM_BENCH_PLANES", "256"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        volume, tiles = write(Path(folder) / "a.zarr", planes), Tiles()
        random = np.random.default_rng(1)
        for number, level in enumerate(tiles.about("a", volume).levels):
            depth, high, wide = level.shape_zyx
            places = [
                (z, row, column)
                for z in range(depth)
                for row in range(-(-high // SIDE))
                for column in range(-(-wide // SIDE))
            ]
            chosen = [places[at] for at in random.permutation(len(places))[:MOST]]
            queries = [
                TileQuery(volume="a", level=number, z=z, row=row, column=column) for z, row, column in chosen
            ]
            fresh, again = (milliseconds(tiles, volume, queries) for _ in range(2))
            rows.append(
                (
                    f"level {number}, {len(queries)} tiles",
                    f"p50 {np.median(fresh):.1f}, p95 {np.quantile(fresh, 0.95):.1f} CPU ms",
                    f"in the cache p95 {np.quantile(again, 0.95):.1f} CPU ms",
                )
            )
    show("Tiles of 256 × 256 as PNG", rows)


if __name__ == "__main__":
    main()
