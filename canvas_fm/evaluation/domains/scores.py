"""Scores over many held-out domains: mean and worst decile of F1 at a fixed threshold.

A domain is a labelled brain or a synthetic one. A method is judged by F1 at one fixed threshold: its mean
over domains and its worst decile. What is lost from brain to brain is the threshold, hardly the ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.confusion_counts import Counts
from canvas_fm.evaluation.detection.curve import Curve

RESAMPLES = 2000
THRESHOLDS = np.linspace(0.02, 0.98, 193)  # of a detector: its fixed threshold is one of these
FEWEST = 50  # cells of a volume that takes part in the choice of a threshold, where any has so many
FEW = 20  # cells below which F1 says little: of three cells, ten false detections make it .4 or less
_GRID = 400
_KEY = 0xD0331  # keeps these draws apart from others with the same seed


@dataclass(frozen=True)
class DomainScore:
    """One method on one domain: counts at its fixed threshold and at the best one.

    Where several models were scored (seeds, or folds that all left the domain out) the counts are of the
    first and `f1_of` has the F1 of each; `f1` is their mean.
    """

    domain: str
    group: str
    cells: int
    threshold: float
    tp: int
    fp: int
    fn: int
    f1: float
    best_f1: float
    best_threshold: float
    f1_of: tuple[float, ...]
    pooled_only: bool = False

    @classmethod
    def of(
        cls,
        domain: str,
        group: str,
        curves: Sequence[Curve],
        thresholds: Sequence[float],
        *,
        pooled_only: bool = False,
    ) -> DomainScore:
        """Score from the curves of one or several models, each at its own fixed threshold."""
        counts = [counts_at(curve, at) for curve, at in zip(curves, thresholds, strict=True)]
        each = tuple(at_threshold.f1 or 0.0 for at_threshold in counts)
        best = [curve.best or (thresholds[0], 0.0) for curve in curves]
        return cls(
            domain, group, curves[0].truths, float(thresholds[0]), counts[0].tp, counts[0].fp, counts[0].fn,
            float(np.mean(each)), float(np.mean([f1 for _, f1 in best])), float(best[0][0]), each,
            pooled_only,
        )  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """A method over several domains; 95 % intervals by resampling domains."""

    domains: int
    mean: float
    mean_interval: tuple[float, float]
    worst_decile: float
    worst_decile_interval: tuple[float, float]
    best_threshold_mean: float
    spread: float | None  # over the models of a domain: the mean standard deviation of F1
    pooled: float


def counts_at(curve: Curve, threshold: float) -> Counts:
    """Counts at or above a threshold."""
    # Thresholds fall: the last one that is still at or above the given one holds its counts.
    last = int(np.searchsorted(-curve.threshold, -threshold, side="right")) - 1
    tp, fp = (int(curve.tp[last]), int(curve.fp[last])) if last >= 0 else (0, 0)
    return Counts(tp, fp, curve.truths - tp)


def f1_on(curve: Curve, thresholds: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " t"]:
    """F1 at each threshold of a grid."""
    if not len(curve.threshold):
        return np.zeros(len(thresholds))
    last = np.searchsorted(-curve.threshold, -thresholds, side="right") - 1
    return np.where(last >= 0, curve.f1[np.maximum(last, 0)], 0.0)


def best_fixed_threshold(curves: Sequence[Curve]) -> float:
    """The threshold of highest mean F1 over these domains, 0 if none has a prediction."""
    thresholds = [curve.threshold for curve in curves if len(curve.threshold)]
    if not thresholds:
        return 0.0
    grid = np.unique(np.quantile(np.concatenate(thresholds), np.linspace(0, 1, _GRID)))
    # Nearly all predictions are weak: the strong ones need a grid of their own.
    grid = np.union1d(grid, np.geomspace(max(grid[0], grid[-1] * 1e-4), grid[-1], _GRID))
    return float(grid[np.argmax(np.mean([f1_on(curve, grid) for curve in curves], axis=0))])


def leave_one_out_thresholds(curves: Mapping[str, Curve]) -> dict[str, float]:
    """Threshold for each domain chosen on all the others; needs two domains or more."""
    if len(curves) < 2:
        raise CanvasError(f"{len(curves)} domains; a threshold chosen on other domains needs two or more")
    return {
        name: best_fixed_threshold([curve for other, curve in curves.items() if other != name])
        for name in curves
    }


def threshold_of_highest_f1(mean: Float64[np.ndarray, " t"], spread: float = 0.0) -> float:
    """The threshold of `THRESHOLDS` with the highest F1 of these, averaged over shifts of the scores.

    F1 often falls faster on one side than on the other, and the scores of a brain to come are shifted against
    those at hand: by `spread` logits, a standard deviation.
    """
    if spread:
        logit = np.log(THRESHOLDS / (1 - THRESHOLDS))
        # Thresholds lie closer in the middle: each stands for its stretch of logits.
        weight = np.exp(-0.5 * ((logit[:, None] - logit) / spread) ** 2) * np.gradient(logit)
        mean = weight @ mean / weight.sum(axis=1)
    return round(float(THRESHOLDS[np.argmax(mean)]), 4)


def cross_fitted_threshold(
    held_out: Mapping[str, Mapping[str, Curve]], *, without: str | None = None, spread: float = 0.0
) -> float:
    """The detector threshold of highest mean F1 over held-out brains by marker, `without` one of them.

    `held_out` are curves by marker and brain, each of a model that was not trained on the brain. Every marker
    counts the same, and brains of fewer than 50 cells do not, where another has more; for `spread` see
    `threshold_of_highest_f1`. CanvasError where nothing is left.
    """
    named = [
        (marker, curve)
        for marker, curves in held_out.items()
        for name, curve in curves.items()
        if name != without
    ]
    enough = [pair for pair in named if pair[1].truths >= FEWEST] or named
    if not enough:
        raise CanvasError("no held-out labelled volume is left to choose a threshold on; give more volumes")
    by_marker: dict[str, list[Float64[np.ndarray, " t"]]] = {}
    for marker, curve in enough:
        by_marker.setdefault(marker, []).append(f1_on(curve, THRESHOLDS))
    mean = np.mean([np.mean(part, axis=0) for part in by_marker.values()], axis=0)
    return threshold_of_highest_f1(mean, spread)


def summarise(scores: Sequence[DomainScore]) -> Summary:
    """Mean and worst decile of F1 at the fixed threshold; domains for pooling only are left out."""
    counted = [score for score in scores if not score.pooled_only]
    if not counted:
        raise CanvasError("no domain to sum up: all count only pooled with others")
    f1 = np.array([score.f1 for score in counted])
    drawn = np.random.default_rng([_KEY, 0]).integers(len(f1), size=(RESAMPLES, len(f1)))
    means, worst = f1[drawn].mean(axis=1), worst_decile(f1[drawn])
    spreads = [float(np.std(score.f1_of, ddof=1)) for score in counted if len(score.f1_of) > 1]
    tp, fp, fn = (sum(getattr(score, name) for score in scores) for name in ("tp", "fp", "fn"))
    return Summary(
        domains=len(f1),
        mean=float(f1.mean()),
        mean_interval=_ends(means),
        worst_decile=float(worst_decile(f1[None])[0]),
        worst_decile_interval=_ends(worst),
        best_threshold_mean=float(np.mean([score.best_f1 for score in counted])),
        spread=float(np.mean(spreads)) if spreads else None,
        pooled=Counts(tp, fp, fn).f1 or 0.0,
    )


def worst_decile(f1: Float64[np.ndarray, "draws n"]) -> Float64[np.ndarray, " draws"]:
    """Mean of the worst tenth of each row, at least one domain."""
    k = max(1, f1.shape[1] // 10)
    return np.sort(f1, axis=1)[:, :k].mean(axis=1)


def _ends(values: Float64[np.ndarray, " draws"]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def domains_report(
    scores: Mapping[str, Sequence[DomainScore]], protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """The report of `canvas-fm domains`: each method on each domain, summaries by group and overall.

    `groups_of_20_cells` leaves out domains of fewer cells: a few false detections decide their F1, and where
    there is no cell it is 0 whatever is found, so they make up most of a worst decile.
    """
    methods = {}
    for name, rows in scores.items():
        groups: dict[str, list[DomainScore]] = {}
        for row in rows:
            groups.setdefault(row.group, []).append(row)
        parts = {group: part for group, part in groups.items() if not all(row.pooled_only for row in part)}
        methods[name] = {
            "domains": {row.domain: asdict(row) for row in rows},
            "groups": {group: asdict(summarise(part)) for group, part in parts.items()},
            "groups_of_20_cells": {
                group: asdict(summarise(enough))
                for group, part in parts.items()
                if (enough := [row for row in part if row.cells >= FEW and not row.pooled_only])
            },
            "all": asdict(summarise(rows)),
        }
    return {"protocol": dict(protocol), "methods": methods}


def domains_table(report: Mapping[str, Any]) -> str:
    """The report as Markdown: summaries, then real brains one by one."""
    methods = report["methods"]
    lines = [f"| F1 at the fixed threshold | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    groups = list(dict.fromkeys(group for method in methods.values() for group in method["groups"]))
    for group in ["all", *groups]:
        for key, label in (("mean", "mean"), ("worst_decile", "worst decile"), ("pooled", "pooled")):
            values = []
            for method in methods.values():
                part = method["all"] if group == "all" else method["groups"].get(group)
                values.append("–" if part is None else _with_interval(part, key))
            lines.append(f"| {group}, {label} | {' | '.join(values)} |")
    for group in groups:
        every = [method["groups"].get(group) for method in methods.values()]
        enough = [method.get("groups_of_20_cells", {}).get(group) for method in methods.values()]
        left = {part["domains"] for part in enough if part}
        if not left or left == {part["domains"] for part in every if part}:
            continue
        for key, label in (("mean", "mean"), ("worst_decile", "worst decile")):
            values = ["–" if part is None else _with_interval(part, key) for part in enough]
            of = ", ".join(str(n) for n in sorted(left))
            lines.append(f"| {group} of {FEW} cells and more ({of}), {label} | {' | '.join(values)} |")
    named = dict.fromkeys(name for method in methods.values() for name in method["domains"])
    for name in (name for name in named if not name.startswith("phantom ")):
        cells = []
        for method in methods.values():
            row = method["domains"].get(name)
            cells.append("–" if row is None else f"{row['f1']:.3f} ({row['best_f1']:.3f})")
        lines.append(f"| {name} (best threshold) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _with_interval(part: Mapping[str, Any], key: str) -> str:
    interval = part.get(f"{key}_interval")
    text = f"{part[key]:.3f}"
    return text if interval is None else f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]"
