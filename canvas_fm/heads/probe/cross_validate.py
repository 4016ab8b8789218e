"""Cross-validation of a probe and of kNN on held-out groups, with a label curve."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.metrics.classification import (
    Interval,
    auc_of_ranks,
    balanced_accuracy,
    best_f1,
    bootstrap,
)
from canvas_fm.heads.compare.label_curve import COUNTS, LabelCurve, counts_up_to, draw_labels
from canvas_fm.heads.labels.group_folds import Folds
from canvas_fm.heads.probe.effective_rank import effective_rank
from canvas_fm.heads.probe.knn import KS, knn_proba
from canvas_fm.heads.probe.labelled_embeddings import Correction, ProbeData, class_folds, read_probe_data
from canvas_fm.heads.probe.probe import Probe, fit_probe
from canvas_fm.heads.refine.head.logistic_path import Path, fit_path
from canvas_fm.progress import bar

Proba = Float64[np.ndarray, "_ _"]
RowIndices = Int64[np.ndarray, "_"]
Splits = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ProbeScore:
    """Cross-validated metrics: `methods[name]` has balanced_accuracy, auc and f1 with intervals."""

    data: ProbeData
    folds: Folds
    methods: dict[str, dict[str, Interval | None]]
    curve: LabelCurve
    effective_rank: float
    loss: dict[float, float]

    def to_json(self) -> dict[str, Any]:
        """As a dictionary for `json.dumps`."""
        counts = np.bincount(self.data.code, minlength=len(self.data.classes)).tolist()
        return {
            "encoder": self.data.encoder,
            "encoder_sha256": self.data.encoder_sha256,
            "pool": self.data.pool,
            "correction": self.data.correction,
            "rows": len(self.data),
            "skipped": self.data.skipped,
            "classes": dict(zip(self.data.classes, counts, strict=True)),
            "groups": len(np.unique(self.data.group)),
            "split": {"by": self.folds.by, "folds": self.folds.count, "warning": self.folds.warning},
            "methods": {
                name: {
                    key: None if interval is None else interval.as_dict() for key, interval in figures.items()
                }
                for name, figures in self.methods.items()
            },
            "path": {f"{c:g}": loss for c, loss in self.loss.items()},
            "effective_rank": self.effective_rank,
            "dim": self.data.x.shape[1],
            "label_curve": self.curve.to_json(),
            "notes": list(self.data.notes),
        }


def probe_fit(
    stores: Sequence[str | pathlib.Path],
    out: str | pathlib.Path,
    *,
    labels: str,
    groups: str | None = None,
    correction: Correction = "none",
    folds: int = 5,
    force_random: bool = False,
    counts: Sequence[int] = COUNTS,
    seeds: int = 5,
    seed: int = 0,
    overwrite: bool = False,
    show: bool | None = None,
) -> tuple[Probe, ProbeScore]:
    """Cross-validate a probe, then fit it on all rows and write the folder `out`.

    Raises as `read_probe_data` and `class_folds` do, and where `out` is there already, unless `overwrite`.
    """
    place = pathlib.Path(out)
    if place.exists() and not overwrite and not (place.is_dir() and not any(place.iterdir())):
        raise CanvasError(f"{out} is there already; give another --out, or --overwrite to replace it")
    data = read_probe_data(stores, labels=labels, groups=groups, correction=correction)
    split = class_folds(data, folds=folds, force_random=force_random, seed=seed)
    score = score_probe(data, split, counts=counts, seeds=seeds, seed=seed, show=show)
    logistic = score.methods["logistic"]
    provenance = {
        "rows": len(data),
        "groups": sorted(map(str, np.unique(data.group))),
        "split": split.by,
        "balanced_accuracy": _value(logistic["balanced_accuracy"]),
        "auc": _value(logistic["auc"]),
    }
    return fit_probe(data, split, out, labels=labels, provenance=provenance), score


def score_probe(
    data: ProbeData,
    folds: Folds,
    *,
    counts: Sequence[int] = COUNTS,
    seeds: int = 5,
    seed: int = 0,
    show: bool | None = None,
) -> ProbeScore:
    """Cross-validate logistic probe and kNN; effective rank; label curve over `seeds` draws.

    Within each fold's training rows the penalty is chosen by their own groups: the test rows choose nothing.
    Intervals draw whole groups, of fewer than five rows within each.
    """
    if seeds < 1:
        raise CanvasError(f"seeds is {seeds}; give at least 1")
    smallest = min(len(train) for train, _ in folds)
    numbers = counts_up_to(smallest, counts)
    names = ("logistic", *(f"knn {k}" for k in KS))
    by_method = {name: _Predictions(data) for name in names}
    drawn = {(n, s): _Predictions(data) for n in numbers for s in range(seeds)}
    losses: list[dict[float, float]] = []
    with bar("probe", folds.count * (1 + len(numbers)), unit="fits", show=show) as advance:
        for train, test in folds:
            losses.append(_predict_fold(data, by_method, train, test))
            advance()
            for n in numbers:
                for number in range(seeds):
                    rows = train[draw_labels(data.code[train], n, seed + number)]
                    path = _fit(data, rows, _strata(data.code[rows]))
                    drawn[n, number].put(rows, path.held_out, test, path.model.proba(data.x[test]))
                advance()
    everything = np.arange(len(data))
    values = {
        n: [_f1(data.code, drawn[n, s].predicted)(everything) or 0.0 for s in range(seeds)] for n in numbers
    }
    return ProbeScore(
        data=data,
        folds=folds,
        methods={name: _figures(data, predictions, seed) for name, predictions in by_method.items()},
        curve=LabelCurve("F1" if len(data.classes) == 2 else "macro F1", values),
        effective_rank=effective_rank(data.x),
        loss=_mean(losses),
    )


class _Predictions:
    """Out-of-fold predictions of one method.

    `p` are probabilities; `balanced` the class likeliest if all were equally frequent; `predicted` the
    likeliest one, of two classes the second from the threshold on that was best on the training rows' own
    held-out parts.
    """

    def __init__(self, data: ProbeData) -> None:
        self._code, self._classes = data.code, len(data.classes)
        self.p = np.zeros((len(data), self._classes))
        self.balanced, self.predicted = np.zeros(len(data), np.int64), np.zeros(len(data), np.int64)

    def put(self, train: RowIndices, held_out: Proba, test: RowIndices, p: Proba) -> None:
        """Store probabilities of held-out rows, NaN where there are none."""
        code = self._code[train]
        share = np.bincount(code, minlength=self._classes) / len(code)
        self.p[test] = p
        self.balanced[test] = (p / np.maximum(share, 1e-12)).argmax(axis=1)
        self.predicted[test] = p.argmax(axis=1)
        known = ~np.isnan(held_out[:, 0])
        if self._classes == 2 and known.any():
            threshold, _ = best_f1(code[known] == 1, held_out[known, 1])
            self.predicted[test] = p[:, 1] >= threshold


def _predict_fold(
    data: ProbeData, by_method: dict[str, _Predictions], train: RowIndices, test: RowIndices
) -> dict[float, float]:
    """Fit logistic regression and kNN on `train`, predict `test`; returns the path's losses too."""
    inner = _inner(data, train)
    path = _fit(data, train, inner)
    by_method["logistic"].put(train, path.held_out, test, path.model.proba(data.x[test]))
    classes = len(data.classes)
    held_out = {k: np.full((len(train), classes), np.nan) for k in KS}
    for inner_train, inner_test in inner:
        x, code = data.x[train], data.code[train]
        for k, proba in knn_proba(x[inner_train], code[inner_train], x[inner_test], classes).items():
            held_out[k][inner_test] = proba
    for k, proba in knn_proba(data.x[train], data.code[train], data.x[test], classes).items():
        by_method[f"knn {k}"].put(train, held_out[k], test, proba)
    return path.loss


def _fit(data: ProbeData, rows: RowIndices, splits: Splits) -> Path:
    return fit_path(data.x[rows], data.code[rows], len(data.classes), splits)


def _inner(data: ProbeData, train: RowIndices) -> Splits:
    """Inner splits of training rows: grouped if there are two groups or more, else stratified."""
    from sklearn.model_selection import GroupKFold

    group = data.group[train]
    many = len(np.unique(group))
    if many < 2:
        return _strata(data.code[train])
    return list(GroupKFold(min(5, many)).split(train, groups=group))


def _strata(code: RowIndices) -> Splits:
    from sklearn.model_selection import StratifiedKFold

    parts = min(3, int(np.bincount(code)[np.unique(code)].min()))
    return list(StratifiedKFold(parts).split(code, code)) if parts > 1 else []


def _figures(data: ProbeData, predictions: _Predictions, seed: int) -> dict[str, Interval | None]:
    metrics: dict[str, Callable[[np.ndarray], float | None]] = {
        "balanced_accuracy": lambda rows: balanced_accuracy(data.code[rows], predictions.balanced[rows]),
        "auc": _auc(data.code, predictions.p),
        "f1": _f1(data.code, predictions.predicted),
    }
    return {name: bootstrap(metric, data.group, resamples=500, seed=seed) for name, metric in metrics.items()}


def _auc(code: Int64[np.ndarray, " n"], p: Proba) -> Callable[[np.ndarray], float | None]:
    """AUC of the second of two classes; of more, the mean one-versus-rest AUC. Scores are ranked once."""
    kinds = [1] if p.shape[1] == 2 else range(p.shape[1])
    ranked = [(code == kind, np.unique(p[:, kind], return_inverse=True)[1]) for kind in kinds]

    def figure(rows: np.ndarray) -> float | None:
        by_class = [auc_of_ranks(is_kind[rows], rank[rows]) for is_kind, rank in ranked]
        known = [value for value in by_class if value is not None]
        return float(np.mean(known)) if known else None

    return figure


def _f1(
    code: Int64[np.ndarray, " n"], predicted: Int64[np.ndarray, " n"]
) -> Callable[[np.ndarray], float | None]:
    """F1 of the second of two classes; of more, the macro mean."""
    kinds = [1] if code.max() < 2 else range(int(code.max()) + 1)

    def figure(rows: np.ndarray) -> float | None:
        by_class = []
        for kind in kinds:
            truth, guess = code[rows] == kind, predicted[rows] == kind
            if truth.any() or guess.any():
                by_class.append(2 * int((truth & guess).sum()) / int(truth.sum() + guess.sum()))
        return float(np.mean(by_class)) if by_class else None

    return figure


def _mean(losses: Sequence[dict[float, float]]) -> dict[float, float]:
    known = [loss for loss in losses if loss]
    return {c: float(np.mean([loss[c] for loss in known])) for c in known[0]} if known else {}


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value
