"""Methods against each other on the same candidates: every volume judged by what was fitted on the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.classification import auc, average_precision, calibration_error, ceiling
from canvas_fm.evaluation.counts import Counts, intervals, pooled_rows
from canvas_fm.heads.candidates import CELL, SKIP, Candidates
from canvas_fm.heads.label_curve import COUNTS, draw_labels
from canvas_fm.heads.methods import Fit, Method, training
from canvas_fm.heads.splits import check_labels
from canvas_fm.heads.task import Task
from canvas_fm.progress import bar

_log = logging.getLogger(__name__)
_TIMED = 512  # candidates that are judged once more to measure speed
_OVERLAP = (1, 99)  # percentiles of the cells' and of the other candidates' own scores
REGIONS = (
    "one volume only: its labelled regions are held out in turn, so neighbours across their borders stand on "
    "both sides, and the figures say little about another brain"
)


class Result(NamedTuple):
    """One method on one held-out volume, fitted with so many labels.

    `f1`, `precision` and `recall` are against all true cells at `threshold`, chosen on the training rows;
    `f1_tuned` is the best over thresholds on the answers themselves, an upper bound and no result; `ceiling`
    is the F1 of a perfect judge of these candidates. `auc_overlap` is the AUC among candidates whose own
    score lies where those of cells and of others overlap.
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
    tp: int
    fp: int
    fn: int


class Speed(NamedTuple):
    """Candidates judged a second on the machine of the run; `whole` where that starts at the voxels."""

    cells_per_s: float
    whole: bool
    threads: int


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: a row for each method, held-out volume, seed and number of labels.

    `p_cell[method]` has a value for each row of the task, by a fit that has not seen it (first seed, all
    labels), NaN for skipped rows.
    """

    task: Task
    results: list[Result]
    p_cell: dict[str, Float64[np.ndarray, " n"]]
    thresholds: dict[str, dict[str, float]]
    speed: dict[str, Speed]
    folds: dict[str, tuple[str, ...]]
    notes: list[str] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        return list(self.p_cell)

    @property
    def volumes(self) -> list[str]:
        return [name for names in self.folds.values() for name in names]

    def of(self, method: str, volume: str, *, labels: int | None = None) -> list[Result]:
        """The results of all seeds: with all labels, or with a number of the label curve."""
        return [
            one
            for one in self.results
            if (one.method, one.volume) == (method, volume)
            and (one.everything if labels is None else one.labels == labels)
        ]


def compare(
    task: Task,
    methods: Sequence[Method],
    *,
    folds: Mapping[str, Sequence[str]] | None = None,
    seeds: int = 3,
    counts: Sequence[int] = COUNTS,
    curve_of: Sequence[str] | None = None,
    show: bool | None = None,
) -> Comparison:
    """Fit every method on all but a fold's volumes, judge those, and do it again with few labels.

    `folds` names the volumes that are held out together, by default each by itself. `counts` are the numbers
    of labels of the curve (none: no curve), whose draws are the same for every method; `curve_of` are the
    methods in it, by default all. A method whose fit does not hang on the seed is fitted once on all labels.
    Raises CanvasError for names twice, folds that leave nothing to learn from, and one class only.
    """
    parts = {part.name: part for part in task.parts}
    held = _folds(task, folds)
    _check(task, methods, held, seeds, curve_of)
    p_cell = {method.name: np.full(len(task), np.nan) for method in methods}
    thresholds: dict[str, dict[str, float]] = {method.name: {} for method in methods}
    results: list[Result] = []
    speed: dict[str, Speed] = {}
    with bar("comparing", len(held) * len(methods), unit="fits", show=show) as advance:
        for fold, names in held.items():
            others = [name for name in parts if name not in names]
            rows, pool = task.labelled(others), np.flatnonzero(np.isin(task.group, others))
            for method in methods:
                advance(0, f"{method.name}, without {fold}")
                for seed in range(seeds if method.seeded else 1):
                    fit = method.fit(training(task, rows, pool, fold, seed))
                    for name in names:
                        p = _judged(task, fit, name)
                        results.append(_result(method, parts[name], fold, seed, len(rows), True, fit, p))
                        if not seed:
                            p_cell[method.name][task.group == name] = p
                            thresholds[method.name][name] = fit.threshold
                    if not seed and method.name not in speed:
                        speed[method.name] = _speed(task, fit, names)
                if curve_of is None or method.name in curve_of:
                    results += _curve(task, method, fold, names, rows, pool, seeds, counts)
                advance(1)
    notes = [REGIONS] if task.by == "region" else []
    skipped = int((task.label == SKIP).sum())
    if skipped:
        notes.append(f"{skipped:,} of {len(task):,} candidates are labelled −1 or lie outside: skipped")
    return Comparison(task, results, p_cell, thresholds, speed, held, notes)


def overlap(is_cell: Bool[np.ndarray, " n"], own: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Candidates whose own score could be either's: from the lowest 1 % of cells to the top 1 % of others."""
    if is_cell.all() or not is_cell.any():
        return np.zeros(len(own), bool)
    low = np.percentile(own[is_cell], _OVERLAP[0], method="lower")
    high = np.percentile(own[~is_cell], _OVERLAP[1], method="higher")
    return (own >= low) & (own <= high)


def _folds(task: Task, folds: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    names = [part.name for part in task.parts]
    if folds is None:
        return {name: (name,) for name in names}
    held = {fold: tuple(some) for fold, some in folds.items()}
    for fold, some in held.items():
        if unknown := sorted(set(some) - set(names)):
            raise CanvasError(f"fold {fold!r} names {unknown[0]!r}; there are {', '.join(names)}")
        if not some or not set(names) - set(some):
            raise CanvasError(
                f"fold {fold!r} holds out {len(some)} of {len(names)} volumes; leave some to learn from"
            )
    twice = [name for name in names if sum(name in some for some in held.values()) > 1]
    if twice:
        raise CanvasError(f"{twice[0]!r} stands in two folds; hold out each volume once")
    return held


def _check(
    task: Task,
    methods: Sequence[Method],
    held: Mapping[str, tuple[str, ...]],
    seeds: int,
    curve_of: Sequence[str] | None,
) -> None:
    names = [method.name for method in methods]
    if not names or len(set(names)) < len(names):
        raise CanvasError(f"methods are {', '.join(names) or 'none'}; give one or more, by different names")
    if unknown := sorted(set(curve_of or ()) - set(names)):
        raise CanvasError(f"curve_of names {unknown[0]!r}; the methods are {', '.join(names)}")
    if seeds < 1:
        raise CanvasError(f"seeds is {seeds}; give at least 1")
    for fold, some in held.items():
        rows = task.labelled([part.name for part in task.parts if part.name not in some])
        try:
            check_labels(task.is_cell[rows], 2)
        except CanvasError as problem:
            raise CanvasError(f"without {fold}: {problem}") from problem


def _curve(
    task: Task,
    method: Method,
    fold: str,
    names: tuple[str, ...],
    rows: np.ndarray,
    pool: np.ndarray,
    seeds: int,
    counts: Sequence[int],
) -> list[Result]:
    """The same with few labels: for every number and seed one draw, the same for all methods."""
    found = []
    for count in sorted({n for n in counts if n < len(rows)}):
        for seed in range(seeds):
            some = rows[draw_labels(task.is_cell[rows].astype(np.int64), count, seed)]
            fit = method.fit(training(task, some, pool, fold, seed))
            for part in task.parts:
                if part.name in names:
                    p = _judged(task, fit, part.name)
                    found.append(_result(method, part, fold, seed, count, False, fit, p))
    return found


def _judged(task: Task, fit: Fit, name: str) -> np.ndarray:
    """P(cell) of one part's candidates, NaN for skipped ones."""
    rows = np.flatnonzero(task.group == name)
    asked = rows[task.label[rows] != SKIP]
    p = np.full(len(rows), np.nan)
    p[task.label[rows] != SKIP] = fit.judge(asked)
    if not np.isfinite(p[task.label[rows] != SKIP]).all():
        raise CanvasError(f"P(cell) of {name} is not a number for some candidates; look at the features")
    return p


def _result(
    method: Method,
    part: Candidates,
    fold: str,
    seed: int,
    labels: int,
    everything: bool,
    fit: Fit,
    p: np.ndarray,
) -> Result:
    known = part.label != SKIP
    is_cell, said = part.label[known] == CELL, p[known]
    boxes = part.counts_by_box(np.where(known, p, -1.0) >= fit.threshold)
    counts = pooled_rows(boxes)
    curve = part.curve(np.where(known, p, 0.0))
    hard = overlap(is_cell, part.own[known]) if part.own is not None else np.zeros(len(said), bool)
    best = curve.best
    reach = float(curve.tp[-1]) / max(curve.truths, 1) if len(curve.tp) else 0.0
    low, high = intervals(boxes, seed=0).of.get("f1", (0.0, 0.0))
    return Result(
        method=method.name,
        fold=fold,
        volume=part.name,
        seed=seed,
        labels=labels,
        everything=everything,
        auc=auc(is_cell, said),
        auc_overlap=auc(is_cell[hard], said[hard]),
        average_precision=average_precision(is_cell, said, missed=part.missed or 0),
        f1=counts.f1 or 0.0,
        f1_interval=(low, high),
        f1_tuned=0.0 if best is None else best[1],
        precision=counts.precision,
        recall=counts.recall,
        ceiling=ceiling(reach),
        threshold=fit.threshold,
        calibration_error=calibration_error(is_cell, said),
        **Counts(*counts)._asdict(),
    )


def _speed(task: Task, fit: Fit, names: tuple[str, ...]) -> Speed:
    """Judge up to 512 candidates from scratch, after some to warm up; the better of two rounds."""
    import torch

    rows = task.labelled(names)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:_TIMED])
    judge = fit.from_scratch or fit.judge
    judge(rows[:64])
    took = []
    for _ in range(2):
        start = time.perf_counter()
        judge(rows)
        took.append(time.perf_counter() - start)
    return Speed(len(rows) / max(min(took), 1e-9), fit.whole, torch.get_num_threads())
