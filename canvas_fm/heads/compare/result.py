"""What one fit said of candidates that it had not seen, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from canvas_fm.evaluation.classification import auc, average_precision, calibration_error, ceiling
from canvas_fm.evaluation.detection.counts import Counts, intervals, pooled_rows
from canvas_fm.heads.labels.candidates import CELL, SKIP, Candidates
from canvas_fm.heads.refine.calibration import CountSpread, expected_count

_OVERLAP = (1, 99)  # percentiles of the cells' and of the other candidates' own scores


class Speed(NamedTuple):
    """Candidates judged a second on the machine of the run; `whole` where that starts at the voxels.

    `run` tells which process measured it: speeds of one run alone are comparable.
    """

    cells_per_s: float
    whole: bool
    threads: int
    run: str


class FitOutput(NamedTuple):
    """P(cell) of the candidates of a fold's volumes, NaN for skipped ones, by a fit that had not seen any."""

    p_cell: Float64[np.ndarray, " n"]
    threshold: float
    spread: CountSpread
    seconds: float
    speed: Speed | None


class RegionCounts(NamedTuple):
    """Expected cells against true ones, region by region: how far off, and how many 90 % intervals held."""

    off: float
    cells: int
    regions: int
    held: int

    @property
    def error(self) -> float:
        """The share of all cells by which the regions' counts were off."""
        return self.off / max(self.cells, 1)

    @classmethod
    def sum(cls, parts: Iterable[RegionCounts]) -> RegionCounts:
        """The regions of several volumes, or of one, together."""
        parts = list(parts)
        return cls(
            sum(part.off for part in parts),
            sum(part.cells for part in parts),
            sum(part.regions for part in parts),
            sum(part.held for part in parts),
        )


class Result(NamedTuple):
    """One method on one held-out volume, fitted with so many labels in `seconds`.

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
    said: FitOutput,
    *,
    method: str,
    fold: str,
    seed: int,
    labels: int,
    everything: bool,
) -> Result:
    """The figures of one volume's candidates, of which a fit said `p`."""
    known = part.label != SKIP
    is_cell, sure = part.label[known] == CELL, p[known]
    boxes = part.counts_by_box(np.where(known, p, -1.0) >= said.threshold)
    counts = pooled_rows(boxes)
    curve = part.curve(np.where(known, p, 0.0))
    own = part.own
    hard = overlap(is_cell, own[known]) if own is not None else np.zeros(len(sure), bool)
    best = curve.best
    reach = float(curve.tp[-1]) / max(curve.truths, 1) if len(curve.tp) else 0.0
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
        ceiling=ceiling(reach),
        threshold=said.threshold,
        calibration_error=calibration_error(is_cell, sure),
        counts=_by_region(part, p, said.spread),
        **Counts(*counts)._asdict(),
        seconds=said.seconds,
    )


def overlap(is_cell: Bool[np.ndarray, " n"], own: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Candidates whose own score could be either's: from the lowest 1 % of cells to the top 1 % of others."""
    if is_cell.all() or not is_cell.any():
        return np.zeros(len(own), bool)
    low = np.percentile(own[is_cell], _OVERLAP[0], method="lower")
    high = np.percentile(own[~is_cell], _OVERLAP[1], method="higher")
    return (own >= low) & (own <= high)


def _by_region(part: Candidates, p: Float64[np.ndarray, " n"], spread: CountSpread) -> RegionCounts:
    region, found = part.region, []
    for number in np.unique(region[part.label != SKIP]):
        mine = (region == number) & (part.label != SKIP)
        count, true = expected_count(p[mine], spread), int((part.label[mine] == CELL).sum())
        held = count.low <= true <= count.high
        found.append(RegionCounts(abs(count.value - true), true, 1, int(held)))
    return RegionCounts.sum(found)
