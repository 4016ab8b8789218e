"""Cross-validated comparison of methods on the same candidates, by held-out volumes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from canvas_fm.errors import CanvasError, counted
from canvas_fm.evaluation.detection.confusion_counts import Counts, pooled_rows
from canvas_fm.heads.compare.fit_cache import FitCache
from canvas_fm.heads.compare.label_curve import COUNTS, draw_labels
from canvas_fm.heads.compare.methods import Fit, Method, training
from canvas_fm.heads.compare.out_of_fold import FitOutput, Result, Speed, result_of
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
from canvas_fm.heads.labels.candidates import SKIP, Candidates
from canvas_fm.heads.labels.group_folds import check_labels
from canvas_fm.progress import bar

_TIMED = 512  # candidates that are judged once more to measure speed
_RUN = f"{time.time():.0f}"  # which process measured a speed
REGIONS = (
    "one volume only: its labelled regions are held out in turn, so neighbours across their borders stand on "
    "both sides, and the figures say little about another brain"
)


@dataclass(frozen=True)
class Comparison:
    """Results of `compare`: one for each method, held-out volume, seed and number of labels.

    `p_cell[method]` has a value for each row of the task, by a fit that has not seen it (first seed, all
    labels), NaN for skipped rows. `unrefined` are the counts of each volume's candidates before any
    judge, those from its own threshold on where it has one.
    """

    pooled: PooledCandidates
    results: list[Result]
    p_cell: dict[str, Float64[np.ndarray, " n"]]
    thresholds: dict[str, dict[str, float]]
    speed: dict[str, Speed]
    folds: dict[str, tuple[str, ...]]
    notes: list[str] = field(default_factory=list)
    unrefined: dict[str, Counts] = field(default_factory=dict)
    own_thresholds: dict[str, float] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        return list(self.p_cell)

    @property
    def volumes(self) -> list[str]:
        return [name for names in self.folds.values() for name in names]

    def of(self, method: str, volume: str, *, labels: int | None = None) -> list[Result]:
        """Results of all seeds with all labels, or with one number of the label curve."""
        return [
            result
            for result in self.results
            if (result.method, result.volume) == (method, volume)
            and (result.everything if labels is None else result.labels == labels)
        ]


def compare(
    pooled: PooledCandidates,
    methods: Sequence[Method],
    *,
    folds: Mapping[str, Sequence[str]] | None = None,
    seeds: int = 3,
    counts: Sequence[int] = COUNTS,
    curve_of: Sequence[str] | None = None,
    own_thresholds: Mapping[str, float] | None = None,
    keep: Path | None = None,
    show: bool | None = None,
) -> Comparison:
    """Cross-validate every method over folds of volumes, with all labels and with few.

    `folds` names the volumes that are held out together, by default each by itself. `counts` are the numbers
    of labels of the curve (none: no curve), whose draws are the same for every method; `curve_of` are the
    methods in it, by default all. A method whose fit does not hang on the seed is fitted once on all labels.
    `own_thresholds` is the fixed threshold of a volume's candidate score without a method (all are cells
    where none is given). With the folder `keep` every finished fit lies there, and is not made again.

    Raises CanvasError for names twice, folds that leave nothing to learn from, and one class only.
    """
    test_volumes = _folds(pooled, folds)
    _check(pooled, methods, test_volumes, seeds, curve_of)
    plan = list(_plan(pooled, methods, test_volumes, seeds, counts, curve_of))
    cache = FitCache(keep, pooled)
    keys = [
        cache.key(planned.method.identity(planned.fold), **planned.key_fields(test_volumes))
        for planned in plan
    ]
    p_cell = {method.name: np.full(len(pooled), np.nan) for method in methods}
    thresholds: dict[str, dict[str, float]] = {method.name: {} for method in methods}
    results: list[Result] = []
    speed: dict[str, Speed] = {}
    done = sum(key in cache for key in keys)
    with bar("comparing", len(plan), unit="fits", done=done, show=show) as advance:
        for planned, key in zip(plan, keys, strict=True):
            fit = cache.get(key)
            if fit is None:
                advance(0, str(planned))
                fit = _fitted(pooled, planned, test_volumes[planned.fold])
                cache.put(key, fit)
                advance(1)
            results += _results(pooled, planned, test_volumes[planned.fold], fit)
            if planned.first:
                p_cell[planned.method.name][np.isin(pooled.group, test_volumes[planned.fold])] = fit.p_cell
                thresholds[planned.method.name] |= dict.fromkeys(test_volumes[planned.fold], fit.threshold)
            if fit.speed is not None:
                speed.setdefault(planned.method.name, fit.speed)
    candidate_thresholds = dict(own_thresholds or {})
    before = {part.name: _unrefined(part, candidate_thresholds.get(part.name)) for part in pooled.parts}
    return Comparison(
        pooled,
        results,
        p_cell,
        thresholds,
        speed,
        test_volumes,
        _notes(pooled, speed),
        before,
        candidate_thresholds,
    )


class PlannedFit(NamedTuple):
    """One fit of a comparison: method, fold, and a label draw or all labels."""

    method: Method
    fold: str
    seed: int
    labels: int
    everything: bool
    timed: bool = False

    @property
    def first(self) -> bool:
        return self.everything and not self.seed

    def key_fields(self, test_volumes: Mapping[str, tuple[str, ...]]) -> dict[str, object]:
        """Cache key of the fit, in addition to method and candidates."""
        out = sorted(test_volumes[self.fold])
        return {"held out": out, "seed": self.seed, "labels": self.labels, "timed": self.timed}

    def __str__(self) -> str:
        return f"{self.method.name}, without {self.fold}, {self.labels:,} labels, seed {self.seed}"


def _plan(
    pooled: PooledCandidates,
    methods: Sequence[Method],
    test_volumes: Mapping[str, tuple[str, ...]],
    seeds: int,
    counts: Sequence[int],
    curve_of: Sequence[str] | None,
) -> Iterator[PlannedFit]:
    for fold, names in test_volumes.items():
        most = len(pooled.labelled([part.name for part in pooled.parts if part.name not in names]))
        for method in methods:
            for seed in range(seeds if method.seeded else 1):
                yield PlannedFit(
                    method, fold, seed, most, True, not seed and fold == next(iter(test_volumes))
                )
            if curve_of is None or method.name in curve_of:
                for count in sorted({n for n in counts if n < most}):
                    for seed in range(seeds):
                        yield PlannedFit(method, fold, seed, count, False)


def _fitted(pooled: PooledCandidates, planned: PlannedFit, names: tuple[str, ...]) -> FitOutput:
    """Fit and predict the fold's volumes; a label draw depends on count and seed, not on the method."""
    others = [part.name for part in pooled.parts if part.name not in names]
    rows, pool = pooled.labelled(others), np.flatnonzero(np.isin(pooled.group, others))
    if not planned.everything:
        rows = rows[draw_labels(pooled.is_cell[rows].astype(np.int64), planned.labels, planned.seed)]
    start = time.perf_counter()
    fit = planned.method.fit(training(pooled, rows, pool, planned.fold, planned.seed))
    seconds = time.perf_counter() - start
    test_rows = np.flatnonzero(np.isin(pooled.group, names))
    known = pooled.label[test_rows] != SKIP
    p = np.full(len(test_rows), np.nan)
    p[known] = fit.predict(test_rows[known])
    if not np.isfinite(p[known]).all():
        bad = pooled.group[test_rows[known][~np.isfinite(p[known])][0]]
        raise CanvasError(f"P(cell) of {bad} is not a number for some candidates; look at the features")
    speed = _speed(pooled, fit, names) if planned.timed else None
    return FitOutput(p, float(fit.threshold), fit.spread, seconds, speed)


def _results(
    pooled: PooledCandidates, planned: PlannedFit, names: tuple[str, ...], fit: FitOutput
) -> list[Result]:
    """Results of each of the fold's volumes."""
    test_rows = np.flatnonzero(np.isin(pooled.group, names))
    return [
        result_of(
            part,
            fit.p_cell[pooled.group[test_rows] == part.name],
            fit,
            method=planned.method.name,
            fold=planned.fold,
            seed=planned.seed,
            labels=planned.labels,
            everything=planned.everything,
        )
        for part in pooled.parts
        if part.name in names
    ]


def _unrefined(part: Candidates, threshold: float | None) -> Counts:
    """Counts of a volume's unrefined candidates, at the given threshold if there is one."""
    if threshold is None:
        return pooled_rows(part.counts_by_box(np.ones(len(part), bool)))
    if part.own is None:
        raise CanvasError(f"{part.name}: a threshold is given, but the candidates came without a score")
    return pooled_rows(part.counts_by_box(part.own >= threshold))


def _notes(pooled: PooledCandidates, speed: Mapping[str, Speed]) -> list[str]:
    notes = [REGIONS] if pooled.by == "region" else []
    if skipped := int((pooled.label == SKIP).sum()):
        notes.append(
            f"{skipped:,} of {counted(len(pooled), 'candidate')} are labelled −1 or lie outside: skipped"
        )
    if len({measured.run for measured in speed.values()}) > 1:
        notes.append("the speeds were measured in several runs: their ratios say little")
    return notes


def _folds(pooled: PooledCandidates, folds: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    names = [part.name for part in pooled.parts]
    if folds is None:
        return {name: (name,) for name in names}
    test_volumes = {fold: tuple(fold_names) for fold, fold_names in folds.items()}
    for fold, fold_names in test_volumes.items():
        if unknown := sorted(set(fold_names) - set(names)):
            raise CanvasError(f"fold {fold!r} names {unknown[0]!r}; there are {', '.join(names)}")
        if not fold_names or not set(names) - set(fold_names):
            raise CanvasError(
                f"fold {fold!r} holds out {len(fold_names)} of {counted(len(names), 'volume')}; "
                "leave some to learn from"
            )
    twice = [name for name in names if sum(name in fold_names for fold_names in test_volumes.values()) > 1]
    if twice:
        raise CanvasError(f"{twice[0]!r} stands in two folds; hold out each volume once")
    return test_volumes


def _check(
    pooled: PooledCandidates,
    methods: Sequence[Method],
    test_volumes: Mapping[str, tuple[str, ...]],
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
    for fold, fold_names in test_volumes.items():
        rows = pooled.labelled([part.name for part in pooled.parts if part.name not in fold_names])
        try:
            check_labels(pooled.is_cell[rows], 2)
        except CanvasError as problem:
            raise CanvasError(f"without {fold}: {problem}") from problem


def _speed(pooled: PooledCandidates, fit: Fit, names: tuple[str, ...]) -> Speed:
    """Throughput on up to 512 candidates after warm-up; the better of two rounds."""
    import torch

    rows = pooled.labelled(names)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:_TIMED])
    predict = fit.from_scratch or fit.predict
    predict(rows[:64])
    took = []
    for _ in range(2):
        start = time.perf_counter()
        predict(rows)
        took.append(time.perf_counter() - start)
    return Speed(len(rows) / max(min(took), 1e-9), fit.whole, torch.get_num_threads(), _RUN)
