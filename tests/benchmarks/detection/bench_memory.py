"""Peak memory of `detect` on 2 × 10⁹ voxels, against the limit of 4 GB, and what 10¹¹ voxels would cost.

One block of the phantom's microglia is drawn and mirrored until the volume is full: no chunk is empty, no
tile skipped. `CANVAS_FM_BENCH_VOXELS=1e8` makes it smaller, `CANVAS_FM_BENCH_DETECTOR` names the detector.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canvas_fm.data.phantom.phantom import write_phantom
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.detect.detect import detector_job
from canvas_fm.inference.detect.tiles.tiled_detection import run
from canvas_fm.models.load_model import load
from tests.benchmarks.detection.detectors import bench_detector
from tests.benchmarks.timing import show

BLOCK_ZYX = (64, 256, 256)
LIMIT_GB = 4.0
BRAIN = 1e11


def write_volume(path: Path, voxels: float) -> Volume:
    """A store of at least so many voxels, or one block, about three times as wide as deep."""
    folder = write_phantom(
        path.parent / "block", shape_zyx=BLOCK_ZYX, markers=("IBA1",), stripes=False, progress=False
    )["IBA1"]
    block = Volume.open(folder / "raw.zarr")
    drawn = block.read((0, 0, 0), BLOCK_ZYX)
    blocks = voxels / np.prod(BLOCK_ZYX)
    wide = max(1, round((blocks * 0.75) ** (1 / 3)))
    grid = (max(1, int(np.ceil(blocks / wide**2))), wide, wide)
    shape = tuple(n * size for n, size in zip(grid, BLOCK_ZYX, strict=True))
    with Volume.create(path, shape, voxel_um=block.voxel_um, shard_zyx=BLOCK_ZYX) as writer:
        for place in np.ndindex(*grid):
            mirrored = drawn[tuple(slice(None, None, -1 if n % 2 else 1) for n in place)]
            origin = tuple(n * size for n, size in zip(place, BLOCK_ZYX, strict=True))
            writer.write(origin, np.ascontiguousarray(mirrored))
    return Volume.open(path)


def measure(volume: str, detector: str, out: str, threads: int) -> dict[str, Any]:
    """Seconds, cells and peak memory of this process, which does nothing else."""
    torch.set_num_threads(threads)
    opened = Volume.open(volume)
    job = detector_job(load(detector, kind="detector"), opened, ignore_voxel_size=True, device="cpu")
    before = _peak_gb()
    start, cpu = time.perf_counter(), time.process_time()
    points = run(job, out, show=False)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "before": before,
        "peak": _peak_gb(),
        "cells": len(points),
        "tiles": len(job.tiles),
        "read": sum(job.boxes(core)[0].voxels for core in job.tiles),
    }


def _peak_gb() -> float:
    """The most memory that this process ever held; getrusage would count its parent's before it began."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def brain_rows(found: dict[str, Any], voxels: int) -> list[tuple[str, str, str]]:
    """A whole brain in the same tiles: everything grows with its voxels but the memory of a tile."""
    times = BRAIN / voxels
    per_cell = 60  # bytes: voxel and position as three numbers of 8 bytes each, score, plateau
    return [
        ("10¹¹ voxels: core hours", f"{found['cpu'] * times / 3600:.1f}", "by its share, no tile empty"),
        ("10¹¹ voxels: read, uint16", f"{2 * found['read'] * times / 1e9:,.0f} GB", "halos included"),
        (
            "10¹¹ voxels: memory",
            f"{found['peak'] + found['cells'] * times * per_cell / 1e9:.1f} GB",
            f"a tile's and {found['cells'] * times / 1e6:,.0f} M cells of {per_cell} bytes",
        ),
    ]


def main() -> None:
    wanted = float(os.environ.get("CANVAS_FM_BENCH_VOXELS", "2e9"))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        volume = write_volume(Path(folder) / "brain.zarr", wanted)
        wrote = time.perf_counter() - start
        detector, trained = bench_detector("detector-microglia", volume, Path(folder))
        out = Path(folder) / "cells.csv"
        words = (str(volume.path), str(detector.path), str(out), torch.get_num_threads())
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, words)
        assert len(Points.read(out)) == found["cells"]
        voxels = int(np.prod(volume.shape_zyx))
        disk = sum(path.stat().st_size for path in volume.path.rglob("*") if path.is_file())
    held = "held" if found["peak"] < LIMIT_GB else "NOT HELD"
    of = f"{voxels / 1e6:,.0f} Mvoxel, {found['tiles']} tiles"
    rows = [
        (f"detect, {of}", f"{found['peak']:.2f} GB peak", f"limit {LIMIT_GB:g} GB: {held}"),
        ("before the first tile", f"{found['before']:.2f} GB", "torch and the model"),
        ("speed", f"{voxels / found['seconds'] / 1e6:.2f} Mvoxel/s", f"{found['seconds']:.0f} s"),
        ("a core", f"{voxels / found['cpu'] / 1e6:.2f} Mvoxel/s", f"{found['cpu']:.0f} s of processor"),
        ("cells", f"{found['cells']:,}", f"{'trained' if trained else 'untrained'} {detector.name}"),
        ("the volume", f"{disk / 1e9:.2f} GB on the disk", f"written in {wrote:.0f} s"),
        *brain_rows(found, voxels),
    ]
    show(f"Memory of detection, {torch.get_num_threads()} threads", rows)


if __name__ == "__main__":
    main()
