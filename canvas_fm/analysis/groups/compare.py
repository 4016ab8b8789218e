"""Differences between two groups of brains per region: effect, interval, p-value, power of the next study."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64
from scipy import stats

from canvas_fm.analysis.groups.group_flags import GroupOptions
from canvas_fm.analysis.groups.mixed import compare_repeated, estimable
from canvas_fm.analysis.groups.negative_binomial import compare_counts
from canvas_fm.analysis.groups.study import GroupStudy
from canvas_fm.errors import CanvasError

Model = Literal["welch", "negative-binomial", "mixed"]
_log = logging.getLogger(__name__)
_MOST = 200  # brains a group that a next study is planned with


@dataclass(frozen=True)
class Comparison:
    """Group `second` over `first`, one entry a region.

    `log2_fold` with its 95 % interval `low`, `high`; `hedges_g` in deviations between brains; `q_value` by
    Benjamini and Hochberg. `power` is that of this study for the fold change `power_fold_change`, and
    `brains_needed` a group for 80 %.
    """

    first: str
    second: str
    study: GroupStudy
    tested: Bool[np.ndarray, " r"]
    mean_first: Float64[np.ndarray, " r"]
    mean_second: Float64[np.ndarray, " r"]
    log2_fold: Float64[np.ndarray, " r"]
    low: Float64[np.ndarray, " r"]
    high: Float64[np.ndarray, " r"]
    hedges_g: Float64[np.ndarray, " r"]
    p_value: Float64[np.ndarray, " r"]
    q_value: Float64[np.ndarray, " r"]
    power: Float64[np.ndarray, " r"]
    brains_needed: Float64[np.ndarray, " r"]
    power_fold_change: float
    model: Model

    def table(self) -> dict[str, np.ndarray]:
        """Columns of one row a tested region."""
        at = np.flatnonzero(self.tested)
        text = {"first": self.first, "second": self.second}
        return {
            "id": self.study.ids[at],
            "name": np.array(self.study.names, np.str_)[at],
            "acronym": np.array(self.study.acronyms, np.str_)[at],
            **{key: np.full(len(at), value) for key, value in text.items()},
            "density_first": self.mean_first[at],
            "density_second": self.mean_second[at],
            "log2_fold": self.log2_fold[at],
            "log2_fold_low": self.low[at],
            "log2_fold_high": self.high[at],
            "hedges_g": self.hedges_g[at],
            "p_value": self.p_value[at],
            "q_value": self.q_value[at],
            "power": self.power[at],
            "brains_needed": self.brains_needed[at],
        }


def compare_with_reference(study: GroupStudy, options: GroupOptions) -> list[Comparison]:
    """Every other group against the reference, the first brain's group where none is named."""
    reference = options.reference or study.groups[0]
    settings = options.model_dump(include={"model", "min_count", "power_fold_change"})
    others = [group for group in dict.fromkeys(study.groups) if group != reference]
    return [compare_groups(study, reference, other, **settings) for other in others]


def compare_groups(
    study: GroupStudy,
    first: str,
    second: str,
    *,
    model: Model = "welch",
    min_count: float = 10.0,
    power_fold_change: float = 1.5,
) -> Comparison:
    """Compare densities of two groups, brains being the samples.

    `welch`: Welch's t-test of log densities, half a cell added. `negative-binomial`: a generalised linear
    model of the counts with volume as exposure, the dispersion between brains estimated, and Student's t for
    few brains. `mixed`: a linear mixed model of the log densities of all `repeats` of the study, the brain
    being the random effect.
    Regions with fewer than `min_count` cells in the mean brain, or without a volume, are not tested, nor are
    those whose density is the same in all brains of a group, in both groups: how much brains differ is not
    known there.
    """
    for group in (first, second):
        if group not in study.groups:
            raise CanvasError(
                f"there is no group {group}; the study has {', '.join(sorted(set(study.groups)))}"
            )
    if not power_fold_change > 1:
        raise CanvasError(f"power_fold_change is {power_fold_change}; expected a number above 1")
    if not min_count >= 0:
        raise CanvasError(f"min_count is {min_count}; expected a number of cells from 0")
    a, b = study.of(first), study.of(second)
    either = a | b
    tested = (study.count[either].mean(0) >= min_count) & (study.volume_mm3[either] > 0).all(0)
    if not tested.any():
        _log.warning(
            "no region has %g cells in the mean brain of %s and %s and a volume in each: none is tested",
            min_count, first, second,
        )  # fmt: skip
    volume = np.where(study.volume_mm3 > 0, study.volume_mm3, np.nan)
    density = study.count / volume
    log = np.log2((study.count + 0.5) / volume)
    each = _log_of_repeats(study) if model == "mixed" else None
    if each is not None:
        complete = np.isfinite(each).any(1)[either].all(0) & np.isfinite(each[either]).any(0).all(0)
        tested &= complete & estimable(each[either], b[either])
        log = np.nanmean(np.where(tested, each, 0), axis=1)
    outcome = welch(log[a], log[b])
    tested &= _vary(outcome["deviation"], tested)
    if each is not None:
        for key, values in compare_repeated(each[either][:, :, tested], b[either]).items():
            outcome[key][tested] = values
    if model == "negative-binomial":
        rows = np.ix_(either, tested)
        for key, values in compare_counts(study.count[rows], volume[rows], b[either]).items():
            outcome[key][tested] = values
    p = np.where(tested, outcome["p"], np.nan)
    power, needed = _power(
        outcome["deviation"], int(a.sum()), int(b.sum()), float(np.log2(power_fold_change))
    )
    return Comparison(
        first, second, study, tested, density[a].mean(0), density[b].mean(0), outcome["effect"],
        outcome["low"],
        outcome["high"], outcome["g"], p, benjamini_hochberg(p), power, needed, power_fold_change, model,
    )  # fmt: skip


def _vary(deviation: np.ndarray, tested: np.ndarray) -> Bool[np.ndarray, " r"]:
    """Spread of the brains of a group; a warning where there is none."""
    alike = deviation <= 1e-9
    if same := int((tested & alike).sum()):
        _log.warning(
            "regions that are not tested, as all brains of a group have the same density there, in both "
            "groups: %d", same,
        )  # fmt: skip
    return ~alike


def _log_of_repeats(study: GroupStudy) -> Float64[np.ndarray, "b m r"]:
    """log2 densities of each measurement of a brain, NaN where it lacks one."""
    if study.repeats is None:
        raise CanvasError(
            "the model mixed is of several measurements of each brain; read them with the study: "
            "--repeats hemisphere or --repeats channel"
        )
    volume = study.repeats.volume_mm3
    return np.log2((study.repeats.count + 0.5) / np.where(volume > 0, volume, np.nan))


def welch(a: Float64[np.ndarray, "n r"], b: Float64[np.ndarray, "m r"]) -> dict[str, np.ndarray]:
    """Welch's t-test of b over a, a column a region: effect, low, high (95 %), p, g (Hedges), deviation."""
    n, m = len(a), len(b)
    effect = b.mean(0) - a.mean(0)
    part_a, part_b = a.var(0, ddof=1) / n, b.var(0, ddof=1) / m
    error = np.sqrt(part_a + part_b)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = (part_a + part_b) ** 2 / (part_a**2 / (n - 1) + part_b**2 / (m - 1))
        p = np.where(error > 0, 2 * stats.t.sf(np.abs(effect) / error, freedom), 1.0)
        half = np.where(error > 0, stats.t.ppf(0.975, freedom) * error, 0.0)
        deviation = np.sqrt(((n - 1) * a.var(0, ddof=1) + (m - 1) * b.var(0, ddof=1)) / (n + m - 2))
        g = effect / deviation * (1 - 3 / (4 * (n + m) - 9))
    return {
        "effect": effect,
        "low": effect - half,
        "high": effect + half,
        "p": p,
        "g": g,
        "deviation": deviation,
    }


def benjamini_hochberg(p: Float64[np.ndarray, " r"]) -> Float64[np.ndarray, " r"]:
    """p-values corrected for the false discovery rate; NaN stays NaN and is not counted."""
    q = np.full(len(p), np.nan)
    real = np.flatnonzero(~np.isnan(p))
    order = real[np.argsort(p[real])]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def _power(
    deviation: Float64[np.ndarray, " r"], n: int, m: int, effect: float
) -> tuple[Float64[np.ndarray, " r"], Float64[np.ndarray, " r"]]:
    """Power of a two-sided t-test at 5 % for this effect, and the brains a group that give 80 %."""
    safe = np.where(deviation > 0, deviation, np.nan)

    def of(first: int | np.ndarray, second: int | np.ndarray) -> np.ndarray:
        freedom = first + second - 2
        shift = effect / (safe * np.sqrt(1 / first + 1 / second))
        return stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, shift)

    # Power grows with the size of the groups: halve the interval in which it passes 80 %.
    short, enough = np.ones(len(deviation)), np.full(len(deviation), float(_MOST))
    while (enough - short > 1).any():
        middle = np.maximum((short + enough) // 2, 2)
        passed = of(middle, middle) >= 0.8
        short, enough = np.where(passed, short, middle), np.where(passed, middle, enough)
    needed = np.where(of(enough, enough) >= 0.8, enough, np.nan)
    return of(n, m), needed
