"""Panoptic quality beside panoptica's, on the real masks of nuclei: `python -m tests.benchmarks panoptic`.

The prediction is each mask moved by one voxel along z and x and two along y, a sixth of its objects left out.
Needs `pip install panoptica`, which is no dependency of the project. `--large 1000` instead compares two
volumes of 1000³ voxels on disk by `canvas-fm evaluate-segmentation`, whose value a formula gives.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from canvas_fm.data.volume.volume import Volume
from canvas_fm.evaluation.metrics.segmentation import panoptic_quality
from tests.benchmarks.timing import show
from tests.support.real_data import ABSENT, REAL_DATA

VOLUMES = ("qcanet_8_cell", "qcanet_16_cell", "napari_bio_nuclei", "stardist_3d")


def predicted(truth: np.ndarray) -> np.ndarray:
    """The mask moved by (1, 2, 1), without every sixth object."""
    ids = np.unique(truth[truth > 0])
    moved = np.zeros_like(truth)
    moved[1:, 2:, 1:] = truth[:-1, :-2, :-1]
    moved[np.isin(moved, ids[::6])] = 0
    return moved


def theirs(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """PQ, RQ and SQ of panoptica, objects matched at an IoU above a half."""
    from panoptica import InputType, NaiveThresholdMatching, Panoptica_Evaluator

    evaluator = Panoptica_Evaluator(
        expected_input=InputType.UNMATCHED_INSTANCE,
        instance_matcher=NaiveThresholdMatching(matching_threshold=np.nextafter(0.5, 1)),
    )
    result = evaluator.evaluate(prediction.astype(np.uint16), truth.astype(np.uint16), verbose=False)
    held = result["ungrouped"]
    return float(held.pq), float(held.rq), float(held.sq)


CELL, RADIUS = 25, 8  # a ball in each cell of a lattice, in voxels


def ball(centre: tuple[int, int, int]) -> np.ndarray:
    """A cell of the lattice with a ball."""
    return (
        sum((at - c) ** 2 for at, c in zip(np.ogrid[:CELL, :CELL, :CELL], centre, strict=True)) <= RADIUS**2
    )


def write_balls(out: Path, side: int, centre: tuple[int, int, int], without_each: int) -> None:
    """Balls on a lattice, numbered from 1, of which each `without_each`-th is left out."""
    n = side // CELL
    inside = np.tile(ball(centre), (1, n, n))
    place = np.kron(np.arange(n * n).reshape(n, n), np.ones((CELL, CELL), np.int64))
    with Volume.create(out, (side,) * 3, voxel_um=(1, 1, 1), source="balls", chunk_zyx=(CELL, 125, 125),
                       shard_zyx=(CELL, side, side)) as writer:  # fmt: skip
        for k in range(n):
            number = place + k * n * n
            kept = number % without_each != 0
            writer.write((k * CELL, 0, 0), (inside * (kept * (number + 1))).astype(np.uint16))


def large(side: int) -> None:
    """CPU seconds and peak memory of two large volumes, and the distance from the formula's value."""
    assert side % CELL == 0
    assert (side // CELL) ** 3 <= 65535
    n = (side // CELL) ** 3
    with tempfile.TemporaryDirectory() as scratch:
        truth, prediction = Path(scratch) / "truth.zarr", Path(scratch) / "prediction.zarr"
        write_balls(truth, side, (11, 11, 11), n + 1)
        write_balls(prediction, side, (12, 13, 12), 6)
        words = ["evaluate-segmentation", str(prediction), str(truth), "--json"]
        child = subprocess.Popen(
            [sys.executable, "-m", "canvas_fm.cli", *words], stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert child.stdout is not None
        quality = json.loads(child.stdout.read())
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    a, b = ball((11, 11, 11)), ball((12, 13, 12))
    iou = (a & b).sum() / (a | b).sum()
    missing = n - len(range(0, n, 6))  # of the truth number 0 is left out alone, of the prediction each sixth
    tp, fn = missing, n - 1 - missing
    expected = tp * iou / (tp + fn / 2)
    seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9
    apart = abs(quality["pq"] - expected)
    show(
        f"{side}³ voxels, {n:,} balls",
        [
            (
                "evaluate-segmentation",
                f"{seconds:.1f} CPU s, {peak:.2f} GB",
                f"PQ {quality['pq']:.6f}, {apart:.1e} off",
            )
        ],
    )


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", type=int, metavar="SIDE", help=f"a multiple of {CELL} up to 1000")
    args = parser.parse_args(words)
    if args.large is not None:
        return large(args.large)
    try:
        import panoptica  # noqa: F401
    except ImportError:
        raise SystemExit("panoptica is not installed: pip install panoptica") from None
    folder = REAL_DATA / "labelled_nuclei"
    if not folder.is_dir():
        raise SystemExit(ABSENT)
    rows = []
    for name in VOLUMES:
        store = Volume.open(folder / name / "mask.zarr", voxel_um=(1.0, 1.0, 1.0))
        truth = store.read((0, 0, 0), store.shape_zyx).astype(np.int64)
        prediction = predicted(truth)
        ours = panoptic_quality(prediction, truth, block=64, show=False)
        others = theirs(prediction, truth)
        apart = max(abs(a - b) for a, b in zip((ours.pq, ours.rq, ours.sq), others, strict=True))
        rows.append((name, f"PQ {ours.pq:.4f}, panoptica {others[0]:.4f}", f"largest difference {apart:.1e}"))
    show("panoptic, recognition and segmentation quality", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
