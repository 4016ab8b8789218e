"""Points as precomputed annotations: files, bytes, CPU seconds and peak memory of one and ten million.

`CANVAS_FM_BENCH_POINTS="1000000"` measures that number alone. Beside each the size of the positions and
columns in memory, and the seconds of reading everything back.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from canvas_fm.data.points.tables import PointTable
from canvas_fm.data.precomputed.read_annotations import read_precomputed
from canvas_fm.data.precomputed.write_annotations import write_precomputed
from tests.benchmarks.timing import show

SHAPE, UM = (2000, 6000, 8000), (4.0, 1.8, 1.8)


def points(count: int) -> PointTable:
    """Cells as a brain has them: dense layers, few elsewhere; score, P(cell), label and region."""
    random = np.random.default_rng(0)
    layers = random.normal(random.choice([0.2, 0.3, 0.7], count), 0.05)
    zyx = np.stack([random.random(count), layers, random.random(count)], axis=1).clip(0, 1) * np.array(SHAPE)
    columns = {
        "score": random.random(count, np.float32),
        "p_cell": random.random(count, np.float32),
        "label": random.integers(0, 2, count, np.int8),
        "region": np.array([f"region {number}" for number in range(600)])[random.integers(0, 600, count)],
    }
    return PointTable(np.floor(zyx), columns, {})


def measured(count: int) -> list[tuple[str, str, str]]:
    """The rows of one number of points, in a process of its own for its peak memory."""
    table = points(count)
    held = table.zyx.nbytes + sum(values.nbytes for values in table.columns.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with tempfile.TemporaryDirectory() as folder:
        start, wall = time.process_time(), time.perf_counter()
        write_precomputed(table, Path(folder) / "a", voxel_um=UM, shape_zyx=SHAPE)
        taken, wall = time.process_time() - start, time.perf_counter() - wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
        start = time.process_time()
        back = read_precomputed(Path(folder) / "a")
        read = time.process_time() - start
    assert np.array_equal(back.zyx, table.zyx)
    return [
        (f"{count:,} points", f"{len(files)} files, {size:.0f} MB", f"{held / 1e6:.0f} MB in memory"),
        ("  written", f"{taken:.1f} CPU s, {wall:.1f} s", f"peak {peak:.2f} GB, {before:.2f} before"),
        ("  read back, all equal", f"{read:.1f} CPU s", ""),
    ]


def main() -> None:
    counts = os.environ.get("CANVAS_FM_BENCH_POINTS", "1000000 10000000").split()
    rows = []
    for count in counts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows += pool.apply(measured, (int(count),))
    show("Points as sharded precomputed annotations", rows)


if __name__ == "__main__":
    main()
