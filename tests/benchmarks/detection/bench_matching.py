"""Matching as many predictions as true cells, beside the limit that was set: 0.5 s a core, 10 s and 2 GB.

One true cell in 5,000 µm³ (denser than most neurons), predictions off by 1.5 µm an axis, a fifth of them
false, 8 µm tolerance; once as fractions and once as whole voxels of 4 × 1.8 × 1.8 µm, where ties abound.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time

import numpy as np

from canvas_fm.evaluation.detection.matching import match
from tests.benchmarks.timing import show

VOXEL_UM = (4.0, 1.8, 1.8)
LIMITS = {100_000: (0.5, 2.0), 1_000_000: (10.0, 2.0)}


def cells(n: int, *, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and true cells in voxels."""
    random = np.random.default_rng(0)
    side = (n * 5000) ** (1 / 3)
    truth = random.random((n, 3)) * side
    pred = truth[random.permutation(n)] + random.normal(0, 1.5, (n, 3))
    pred[: n // 5] = random.random((n // 5, 3)) * side
    pred, truth = pred / VOXEL_UM, truth / VOXEL_UM
    return (np.round(pred), np.round(truth)) if whole else (pred, truth)


def measure(n: int, whole: bool, optimal: bool, rounds: int) -> tuple[float, float, int]:
    """Median processor seconds, peak memory in GB of this process, and matches."""
    pred, truth = cells(n, whole=whole)
    match(pred[:1000], truth[:1000], tolerance=8, scale_zyx=VOXEL_UM, optimal=optimal)
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        found = match(pred, truth, tolerance=8, scale_zyx=VOXEL_UM, optimal=optimal)
        taken.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return statistics.median(taken), peak, len(found.pred_index)


def main() -> None:
    rows = [("cells, method", "seconds of one core, peak memory", "limit")]
    for n, (seconds, memory) in LIMITS.items():
        for optimal in (False, True):
            for whole in (False, True):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    taken, peak, matched = pool.apply(measure, (n, whole, optimal, 5 if n <= 100_000 else 1))
                what = f"{n:,} × {n:,} {'whole voxels' if whole else 'fractions'}, "
                what += f"{'optimal' if optimal else 'greedy'}: {matched:,} matches"
                limit = f"{seconds} s, {memory} GB" if not optimal else "none set"
                rows.append((what, f"{taken:.2f} s, {peak:.2f} GB", limit))
    show("Matching within 8 µm", rows)


if __name__ == "__main__":
    main()
