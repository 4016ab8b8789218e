"""Summary of a comparison: tables over seeds, label curves, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from canvas_fm.evaluation.detection.confusion_counts import pooled
from canvas_fm.evaluation.metrics.classification import calibration_error, ceiling
from canvas_fm.heads.compare.compare import Comparison
from canvas_fm.heads.compare.label_curve import LabelCurve, t_interval
from canvas_fm.heads.compare.out_of_fold import RegionCounts, Result
from canvas_fm.heads.labels.candidates import SKIP

POOLED = "pooled"
OWN, CAME = "candidate score", "unrefined candidates"
FIGURES = ("auc", "auc_overlap", "f1", "f1_tuned", "precision", "recall", "calibration_error")


class Figure(NamedTuple):
    """Mean over seeds with its 95 % t interval, and each seed's value."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], lowest: float = 0.0) -> Figure:
        """Figure of values bounded by `lowest` and 1; the interval is clipped there."""
        low, high = np.clip(t_interval(values), lowest, 1.0).tolist()
        return cls(float(np.mean(values)), low, high, tuple(map(float, values)))

    def as_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "interval": [self.low, self.high], "seeds": list(self.seeds)}


class CountLine(NamedTuple):
    """Count accuracy of a method, all volumes and seeds together.

    `error` is the expected calibration error of all candidates pooled (all labels, first seed); `counts` are
    those of the labelled regions, expected against true.
    """

    method: str
    error: float
    counts: RegionCounts


def count_lines(comparison: Comparison) -> list[CountLine]:
    """Count accuracy of each method, from the fits on all labels."""
    lines, known = [], comparison.pooled.label != SKIP
    for method in comparison.methods:
        scored = known & np.isfinite(comparison.p_cell[method])
        error = calibration_error(comparison.pooled.is_cell[scored], comparison.p_cell[method][scored])
        counts = RegionCounts.sum(
            result.counts for result in comparison.results if result.method == method and result.everything
        )
        lines.append(CountLine(method, error, counts))
    return lines


def fit_seconds(comparison: Comparison) -> dict[str, float]:
    """Median seconds of a fit on all labels, over folds and seeds."""
    return {
        method: float(
            np.median(
                [
                    result.seconds
                    for result in comparison.results
                    if result.method == method and result.everything
                ]
            )
        )
        for method in comparison.methods
    }


class Gains(NamedTuple):
    """F1 of a volume's unrefined candidates and of each method; `over` names the reference."""

    before: float
    after: dict[str, float]
    over: str

    @property
    def start(self) -> float:
        """F1 of the reference."""
        return self.after.get(self.over, self.before)


def gains(comparison: Comparison, volume: str) -> Gains:
    """F1 before and after each method, on a volume or all pooled.

    The reference is the candidates at their detector's recorded threshold where it is known for all volumes,
    else the candidate score at the fixed threshold of the training volumes, else all candidates.
    """
    names = comparison.volumes if volume == POOLED else [volume]
    before = pooled(comparison.unrefined[name] for name in names).f1 or 0.0
    f1 = {line.method: line.figures["f1"] for line in lines(comparison, volume)}
    after = {method: value.mean for method, value in f1.items() if value is not None}
    known = set(comparison.own_thresholds) >= set(comparison.volumes)
    return Gains(before, after, OWN if OWN in after and not known else CAME)


class Line(NamedTuple):
    """A method on one volume, or on all pooled (cells counted together, AUC averaged)."""

    method: str
    volume: str
    figures: dict[str, Figure | None]
    cells_interval: tuple[float, float] | None
    ceiling: float
    counts: tuple[int, int, int]


def lines(comparison: Comparison, volume: str, *, labels: int | None = None) -> list[Line]:
    """One line for each method, with all labels or one number of the label curve."""
    by_method = []
    for method in comparison.methods:
        names = comparison.volumes if volume == POOLED else [volume]
        results = [comparison.of(method, name, labels=labels) for name in names]
        if not all(results):
            continue
        by_seed = [
            [volume_results[min(seed, len(volume_results) - 1)] for volume_results in results]
            for seed in range(_seeds(results))
        ]
        by_method.append(_line(method, volume, by_seed))
    return by_method


def curves(comparison: Comparison, volume: str = POOLED, figure: str = "f1") -> dict[str, LabelCurve]:
    """Label curve of each method: a metric by number of labels, all labels last."""
    out = {}
    for method in comparison.methods:
        counts = sorted(
            {
                result.labels
                for result in comparison.results
                if result.method == method and not result.everything
            }
        )
        if not counts:
            continue
        values: dict[int, Sequence[float]] = {}
        for count in counts:
            values |= _values(comparison, method, volume, figure, count, count)
        everything = max(result.labels for result in comparison.results if result.everything)
        values |= _values(comparison, method, volume, figure, None, everything)
        out[method] = LabelCurve("F1" if figure == "f1" else figure, values)
    return out


def against(comparison: Comparison, reference: str, *, labels: int | None = None) -> dict[str, Figure]:
    """ΔF1 of each method from a reference, paired by volume and seed, with interval."""
    out = {}
    for method in comparison.methods:
        pairs = []
        for volume in comparison.volumes:
            method_results, reference_results = (
                comparison.of(name, volume, labels=labels) for name in (method, reference)
            )
            for seed in range(_seeds([method_results, reference_results])):
                if method_results and reference_results:
                    pairs.append(
                        method_results[min(seed, len(method_results) - 1)].f1
                        - reference_results[min(seed, len(reference_results) - 1)].f1
                    )
        if method != reference and pairs:
            out[method] = Figure.of(pairs, lowest=-1.0)
    return out


def _seeds(results: Sequence[Sequence[Result]]) -> int:
    return max((len(volume_results) for volume_results in results), default=0)


def _values(
    comparison: Comparison, method: str, volume: str, figure: str, labels: int | None, at: int
) -> dict[int, Sequence[float]]:
    for line in lines(comparison, volume, labels=labels):
        value = line.figures[figure]
        if line.method == method and value is not None:
            return {at: value.seeds}
    return {}


def _line(method: str, volume: str, by_seed: Sequence[Sequence[Result]]) -> Line:
    figures: dict[str, Figure | None] = {}
    for name in FIGURES:
        values = [_pooled(results, name) for results in by_seed]
        known = [value for value in values if value is not None]
        figures[name] = Figure.of(known) if len(known) == len(values) else None
    first = by_seed[0]
    tp, fp, fn = (sum(getattr(result, name) for result in first) for name in ("tp", "fp", "fn"))
    truths = [result.tp + result.fn for result in first]
    max_recalls = [result.ceiling / (2 - result.ceiling) for result in first]  # R of 2R / (1 + R)
    recall = float(np.average(max_recalls, weights=truths)) if sum(truths) else 0.0
    interval = first[0].f1_interval if len(first) == 1 else None
    return Line(method, volume, figures, interval, ceiling(recall), (tp, fp, fn))


def _pooled(results: Sequence[Result], name: str) -> float | None:
    """One metric over several volumes: F1, precision and recall from summed counts, else the mean."""
    if len(results) == 1:
        return getattr(results[0], name)
    tp, fp, fn = (sum(getattr(result, count) for result in results) for count in ("tp", "fp", "fn"))
    if name == "f1":
        return 2 * tp / max(2 * tp + fp + fn, 1)
    if name == "precision":
        return tp / (tp + fp) if tp + fp else None
    if name == "recall":
        return tp / (tp + fn) if tp + fn else None
    values = [getattr(result, name) for result in results]
    return None if any(value is None for value in values) else float(np.mean(values))
