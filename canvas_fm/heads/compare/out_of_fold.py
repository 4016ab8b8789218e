"""Out-of-fold predictions of one fit, and their metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from canvas_fm.evaluation.detection.confusion_counts import Counts, intervals, pooled_rows
from canvas_fm.evaluation.metrics.classification import auc, average_precision, calibration_error, ceiling
from canvas_fm.heads.labels.candidates import CELL, SKIP, Candidates
from canvas_fm.heads.refine.counts.count_interval import CountSpread, expected_count

_OVERLAP = (1, 99)  # percentiles of the cells' and of the other candidates' own scores


class Speed(NamedTuple):
    """Throughput in candidates per second on this machine; `whole` if it includes reading voxels.

    `run` tells which process measured it: speeds of one run alone are comparable.
    """

    cells_per_s: float
    whole: bool
    threads: int
    run: str


class FitOutput(NamedTuple):
    """P(cell) of the candidates of a fold's held-out volumes, NaN for skipped ones."""

    p_cell: Float64[np.ndarray, " n"]
    threshold: float
    spread: CountSpread
    seconds: float
    speed: Speed | None


class RegionCounts(NamedTuple):
    """Expected against true counts by region: error, and coverage of 90 % intervals."""

    off: float
    cells: int
    regions: int
    held: int

    @property
    def error(self) -> float:
        """Sum of absolute count errors over regions, relative to all cells."""
        return self.off / max(self.cells, 1)

    @classmethod
    def sum(cls, parts: Iterable[RegionCounts]) -> RegionCounts:
        """Sum over regions of several volumes, or of one."""
        parts = list(parts)
        return cls(
            sum(part.off for part in parts),
            sum(part.cells for part in parts),
            sum(part.regions for part in parts),
            sum(part.held for part in parts),
        )


class Result(NamedTuple):
    """One method on one held-out volume: metrics, number of labels, fit `seconds`.

    `f1`, `precision` and `recall` are against all true cells at `threshold`, chosen on the training rows;
    `f1_tuned` is the best over thresholds on the answers themselves, an upper bound and no result; `ceiling`
    is the F1 of a perfect judge of these candidates. `auc_overlap` is the AUC among candidates whose own
    score lies where those of cells and of others overlap. `counts` are those of the labelled regions.
    """

    method: str
    fold: str
    volume: str
    seed: int
    labels: int
    everything: bool
    auc: float | None
    auc_overlap: float | None
    average_precision: float | None
    f1: float
    f1_interval: tuple[float, float]
    f1_tuned: float
    precision: float | None
    recall: float | None
    ceiling: float
    threshold: float
    calibration_error: float
    counts: RegionCounts
    tp: int
    fp: int
    fn: int
    seconds: float


def result_of(
    part: Candidates,
    p: Float64[np.ndarray, " n"],
    output: FitOutput,
    *,
    method: str,
    fold: str,
    seed: int,
    labels: int,
    everything: bool,
) -> Result:
    """Metrics of one volume's candidates from P(cell) `p`."""
    known = part.label != SKIP
    is_cell, sure = part.label[known] == CELL, p[known]
    boxes = part.counts_by_box(np.where(known, p, -1.0) >= output.threshold)
    counts = pooled_rows(boxes)
    curve = part.curve(np.where(known, p, 0.0))
    scores = part.own
    hard = overlap(is_cell, scores[known]) if scores is not None else np.zeros(len(sure), bool)
    best = curve.best
    max_recall = float(curve.tp[-1]) / max(curve.truths, 1) if len(curve.tp) else 0.0
    low, high = intervals(boxes, seed=0).of.get("f1", (0.0, 0.0))
    return Result(
        method=method,
        fold=fold,
        volume=part.name,
        seed=seed,
        labels=labels,
        everything=everything,
        auc=auc(is_cell, sure),
        auc_overlap=auc(is_cell[hard], sure[hard]),
        average_precision=average_precision(is_cell, sure, missed=part.missed or 0),
        f1=counts.f1 or 0.0,
        f1_interval=(low, high),
        f1_tuned=0.0 if best is None else best[1],
        precision=counts.precision,
        recall=counts.recall,
        ceiling=ceiling(max_recall),
        threshold=output.threshold,
        calibration_error=calibration_error(is_cell, sure),
        counts=_by_region(part, p, output.spread),
        **Counts(*counts)._asdict(),
        seconds=output.seconds,
    )


def overlap(is_cell: Bool[np.ndarray, " n"], score: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Candidates with ambiguous scores: from the lowest 1 % of cells to the top 1 % of non-cells."""
    if is_cell.all() or not is_cell.any():
        return np.zeros(len(score), bool)
    low = np.percentile(score[is_cell], _OVERLAP[0], method="lower")
    high = np.percentile(score[~is_cell], _OVERLAP[1], method="higher")
    return (score >= low) & (score <= high)


def _by_region(part: Candidates, p: Float64[np.ndarray, " n"], spread: CountSpread) -> RegionCounts:
    region, by_region = part.region, []
    for number in np.unique(region[part.label != SKIP]):
        in_region = (region == number) & (part.label != SKIP)
        count, true = expected_count(p[in_region], spread), int((part.label[in_region] == CELL).sum())
        covered = count.low <= true <= count.high
        by_region.append(RegionCounts(abs(count.value - true), true, 1, int(covered)))
    return RegionCounts.sum(by_region)
