"""Detection in Mvoxel/s beside cellfinder's, on the same real volume with the same threads, and both F1.

The volume is a microglia cube mirrored to a wider one, so that starting up does not count; F1 is that of the
cube, in its labelled octants, and says so where the detector was trained on it. Ours is read from its store
on the disk, chunk by chunk with checksums; cellfinder is given the array in memory, and classifies nothing:
its default network is fetched from the internet and made for nuclei. Its F1 is also shown for the best of
six settings tuned on the answers, which ours never is.

`CANVAS_FM_BENCH_SIDE=200` and `CANVAS_FM_BENCH_ROUNDS=1` make it smaller, `CANVAS_FM_BENCH_THREADS` says
how many threads each has, `CANVAS_FM_BENCH_DETECTOR` names the detector, and `CELLFINDER_PYTHON` an
interpreter that has cellfinder.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canvas_fm.data.points.boxes import read_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.evaluation.detection.score import evaluate
from canvas_fm.inference.detect.detect import detect
from canvas_fm.models.device import native_bf16, pick_device
from canvas_fm.models.load_model import Detector, load
from tests.benchmarks.detection.detectors import bench_detector
from tests.benchmarks.timing import show
from tests.support.real_data import ABSENT, REAL_DATA

CUBE = "delivr_microglia/7095"  # which no shipped model was trained on
VOXEL_UM = (6.0, 1.62, 1.62)
TOLERANCE_UM = 12.0
ROUNDS = int(os.environ.get("CANVAS_FM_BENCH_ROUNDS", "3"))
TRIED = [
    {"soma_diameter": um, "n_sds_above_mean_thresh": sds} for um, sds in product((8, 12, 16), (3, 10))
]  # the last one is cellfinder's default


def widened(cube: np.ndarray, side: int) -> np.ndarray:
    """The cube and its mirror images beside each other in y and x, `side` voxels wide, cut where smaller."""
    more = [(0, max(0, side - n)) for n in cube.shape[1:]]
    return np.ascontiguousarray(np.pad(cube, [(0, 0), *more], mode="symmetric")[:, :side, :side])


def ours(volume: str, detector: str, precision: str, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round, by the clock and of processors, and the cells, on as many cores as threads."""
    _stay_on(threads)
    torch.set_num_threads(threads)
    opened, model = Volume.open(volume), load(detector, kind="detector")
    options: dict[str, Any] = {"precision": precision, "ignore_voxel_size": True, "show": False}
    z, y, x = (min(n, m) for n, m in zip(opened.shape_zyx, (40, 200, 200), strict=True))
    detect(model, opened, box=(0, 0, 0, z, y, x), **options)
    seconds, cpu = [], []
    for _ in range(rounds):
        start, busy = time.perf_counter(), time.process_time()
        points = detect(model, opened, **options)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    return {"seconds": seconds, "cpu": cpu, "zyx": points.zyx}


def theirs(
    python: str, voxels: np.ndarray, side: int, folder: Path, threads: int, rounds: int
) -> dict[str, Any] | None:
    """The same of cellfinder, and the cells by every setting tried; None where there is no cellfinder."""
    if subprocess.run([python, "-c", "import cellfinder"], capture_output=True, check=False).returncode:
        return None
    settings = {"voxel_um": VOXEL_UM, "threads": threads, "rounds": rounds, "side": side, "tried": TRIED}
    settings["device"] = pick_device("auto").type
    np.save(folder / "voxels.npy", voxels)
    (folder / "settings.json").write_text(json.dumps(settings))
    child = Path(__file__).with_name("cellfinder_child.py")
    paths = [folder / name for name in ("voxels.npy", "settings.json", "out.json")]
    done = subprocess.run(
        [python, child, *paths],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: _stay_on(threads),
        env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads)),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads((folder / "out.json").read_text()))


def f1(zyx: Any) -> float:
    """F1 of positions in the cube's labelled octants."""
    truth = Points.read(REAL_DATA / CUBE / "centroids.csv")
    boxes = read_boxes(REAL_DATA / CUBE / "meta.json")
    score = evaluate(zyx, truth, voxel_um=VOXEL_UM, tolerance_um=TOLERANCE_UM, within=boxes, chance=False)
    return score.counts.f1 or 0.0


def _seen(detector: Detector) -> str:
    listed = detector.config.provenance.get("trained_on", [])
    return ", which it was trained on" if Path(CUBE).name in [one["name"] for one in listed] else ""


def _stay_on(threads: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main() -> None:
    if not REAL_DATA.is_dir():
        print(f"detect: {ABSENT}")
        return
    side = int(os.environ.get("CANVAS_FM_BENCH_SIDE", "600"))
    threads = int(os.environ.get("CANVAS_FM_BENCH_THREADS", str(len(os.sched_getaffinity(0)))))
    python = os.environ.get("CELLFINDER_PYTHON", sys.executable)
    cube = Volume.open(REAL_DATA / CUBE / "raw.zarr", voxel_um=VOXEL_UM)
    voxels = widened(cube.read((0, 0, 0), cube.shape_zyx), side)
    rows = [(f"{voxels.size / 1e6:.0f} Mvoxel of {CUBE}", "Mvoxel/s", "F1 on the cube")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Volume.create(folder / "wide.zarr", voxels.shape, voxel_um=VOXEL_UM) as writer:
            writer.write((0, 0, 0), voxels)
        volume = Volume.open(folder / "wide.zarr")
        detector, trained = bench_detector("detector-microglia", volume, folder)
        speeds = {}
        for precision in ("fp32", *(["bf16"] if native_bf16(pick_device("auto")) else [])):
            words = (str(volume.path), str(detector.path), precision, threads, ROUNDS)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(ours, words)
            speeds[precision] = _speed(found, voxels.size)
            shown = f"{f1(found['zyx']):.3f}{_seen(detector)}" if trained else "untrained"
            rows.append((f"canvas-fm {detector.name}, {precision}", _both(found, voxels.size), shown))
        peer = theirs(python, voxels, cube.shape_zyx[1], folder, threads, ROUNDS)
    rows += (
        [("cellfinder", "–", f"not installed for {python}")]
        if peer is None
        else _beside(peer, voxels.size, speeds)
    )
    device = pick_device("auto").type
    show(f"Detection on {device}, {threads} threads each (limit: at least equal in bf16)", rows)


def _beside(peer: dict[str, Any], voxels: int, speeds: dict[str, float]) -> list[tuple[str, str, str]]:
    tried = [f1(found) for found in peer["tried"]]
    best = int(np.argmax(tried))
    named = ", ".join(f"{key} {value}" for key, value in TRIED[best].items())
    speed = _speed(peer, voxels)
    return [
        (f"cellfinder {peer['version']}, as it comes", _both(peer, voxels), f"{f1(peer['zyx']):.3f}"),
        ("cellfinder, best of six settings", "", f"{tried[best]:.3f}, tuned on the answers: {named}"),
        *((f"{name} over cellfinder", f"{ours_ / speed:.2f} times", "") for name, ours_ in speeds.items()),
    ]


def _speed(found: dict[str, Any], voxels: int) -> float:
    return voxels / statistics.median(found["seconds"]) / 1e6


def _both(found: dict[str, Any], voxels: int) -> str:
    """By the wall's clock, and by processor time, which other work on the machine hardly changes."""
    return f"{_speed(found, voxels):.2f} ({voxels / statistics.median(found['cpu']) / 1e6:.2f} a core)"


if __name__ == "__main__":
    main()
