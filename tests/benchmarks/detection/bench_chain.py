"""The chain on real voxels: `detect --refiner`, `embed`, `index`, `search`, each a command of its own.

`python -m tests.benchmarks chain --voxels 1e8`: a c-Fos and a microglia cube beside each other and
mirrored in y and x, so that a small volume and a large one hold cells in the same density. Of each command:
seconds by the clock and of processors, and the most memory. Only cells that the refiner kept are embedded.
`--out DIR` keeps the files; commands whose file is there are not run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.files.shipped import DEFAULT_ENCODER, shipped
from tests.benchmarks.timing import show
from tests.support.real_data import ABSENT, REAL_DATA

CUBES = ("delivr_cFos/1008", "delivr_microglia/7095")
VOXEL_UM = (6.0, 1.62, 1.62)
STRIP = 256  # voxels in y that are written at a time
NAMES = {"detect": "cells.csv", "embed": "cells.emb.zarr", "index": "cells.index", "search": "found.csv"}


def write_volume(path: Path, voxels: float) -> None:
    """The cubes mirrored in y and x to a square of about so many voxels; written under another name first."""
    opened = [Volume.open(REAL_DATA / name / "raw.zarr", voxel_um=VOXEL_UM) for name in CUBES]
    pair = np.concatenate([cube.read((0, 0, 0), cube.shape_zyx) for cube in opened], axis=2)
    side = round((voxels / len(pair)) ** 0.5)
    y, x = (_mirrored(side, n) for n in pair.shape[1:])
    partial = path.with_suffix(".partial")
    with Volume.create(partial, (len(pair), side, side), voxel_um=VOXEL_UM) as writer:
        for start in range(0, side, STRIP):
            writer.write((0, start, 0), np.ascontiguousarray(pair[:, y[start : start + STRIP]][:, :, x]))
    partial.rename(path)


def _mirrored(side: int, period: int) -> np.ndarray:
    there_and_back = np.concatenate([np.arange(period), np.arange(period)[::-1]])
    return np.resize(there_and_back, side)


def commands(folder: Path, detector: str, refiner: str, encoder: str) -> dict[str, list[str]]:
    """The words of each command after `canvas-fm`."""
    out = {step: str(folder / name) for step, name in NAMES.items()}
    brain = str(folder / "brain.zarr")
    return {
        "detect": ["detect", detector, brain, "--refiner", refiner, "--cells-only", "--out", out["detect"]],
        "embed": ["embed", encoder, brain, "--points", out["detect"], "--out", out["embed"]],
        "index": ["index", out["embed"], "--out", out["index"]],
        "search": ["search", out["index"], "--like", "0", "-k", "10", "--out", out["search"]],
    }


def run(words: list[str], threads: int) -> tuple[float, float, float]:
    """Seconds by the clock, seconds of processors, and the most memory in GB, of one command."""
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "canvas_fm.cli", *words], stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"canvas-fm {' '.join(words)} ended with {child.returncode}")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


def main(words: Sequence[str] = ()) -> None:
    if not REAL_DATA.is_dir():
        print(f"chain: {ABSENT}")
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=float, default=1e8)
    parser.add_argument("--out", type=Path, help="keep everything here; default: a temporary folder")
    parser.add_argument("--detector", default=str(shipped("older model")["detector-phantoms-1"]))
    parser.add_argument("--refiner", default="refiner-cfos")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "brain.zarr").exists():
            write_volume(folder / "brain.zarr", args.voxels)
        voxels = int(np.prod(Volume.open(folder / "brain.zarr").shape_zyx))
        rows = []
        for step, command in commands(folder, args.detector, args.refiner, args.encoder).items():
            if (folder / NAMES[step]).exists():
                continue
            wall, cpu, peak = run(command, args.threads)
            rows.append((step, f"{cpu:.1f} CPU s, {wall:.1f} s by the clock", f"{peak:.2f} GB peak"))
            print(*rows[-1], flush=True)
        cells = len(Points.read(folder / NAMES["detect"]))
    show(f"The chain, {voxels / 1e6:,.0f} Mvoxel, {cells:,} cells, {args.threads} threads a command", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
