"""P(cell) learned from clicks, scores on held-out clicks, and what more clicks would bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from canvas_fm.errors import counted
from canvas_fm.heads.compare.label_curve import LabelCurve, draw_labels

FEWEST = 5  # answers of each class from which a model is fitted
_FOLDS, _SEEDS, _COUNTS = 5, 3, (20, 50, 100, 200, 400)


@dataclass(frozen=True)
class Learned:
    """P(cell), out of fold for answered rows; F1 on held-out clicks before and after; the label curve."""

    p_cell: Float64[np.ndarray, " n"]
    threshold: float
    answers: int
    held_out: int
    f1_before: float | None
    f1_after: float | None
    curve: str

    def as_dict(self) -> dict[str, Any]:
        """The figures and their sentence, without the probabilities."""
        return {
            "answers": self.answers,
            "held_out": self.held_out,
            "f1_before": self.f1_before,
            "f1_after": self.f1_after,
            "threshold": self.threshold,
            "sentence": self.sentence,
            "curve": self.curve,
        }

    @property
    def sentence(self) -> str:
        """Sentence about the model's gain."""
        if self.f1_after is None:
            return (
                f"learned from {counted(self.answers, 'answer')}; too few random ones yet to "
                "say what that gained"
            )
        before = "" if self.f1_before is None else f", the candidates' own score {self.f1_before:.2f}"
        return (
            f"learned from {counted(self.answers, 'answer')}; on {self.held_out} held-out random "
            "ones its F1 is "
            f"{self.f1_after:.2f}{before}"
        )


def fit_clicks(
    x: Float32[np.ndarray, "n d"], label: Int64[np.ndarray, " n"], rows: Int64[np.ndarray, " k"]
) -> Float64[np.ndarray, " n"]:
    """P(cell) of every row by a ridge-penalised logistic model of the answered `rows`."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=0.05, max_iter=300)
    p = model.fit(x[rows], label[rows]).predict_proba(x)[:, 1]
    return np.asarray(p, np.float64)


def standardised(x: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Columns of all candidates at mean 0 and deviation 1; extreme values are cut at six deviations."""
    deviation = x.std(axis=0)
    scaled = (x - x.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0)
    return np.clip(scaled, -6, 6).astype(np.float32)


def learn_from_clicks(
    x: Float32[np.ndarray, "n d"],
    label: Int64[np.ndarray, " n"],
    sample: Int64[np.ndarray, " k"],
    score: Float64[np.ndarray, " n"] | None = None,
    *,
    seed: int = 0,
    curve: bool = True,
) -> Learned | None:
    """Fit on all sure answers; None where a class has fewer than five.

    `x` are standardised features of all candidates, `label` 1, 0 and below 0 without a sure answer, `sample`
    the rows that were answered in random order, on which alone figures are computed.
    """
    rows = np.flatnonzero(label >= 0)
    if min((label[rows] == 1).sum(), (label[rows] == 0).sum()) < FEWEST:
        return None
    random = np.random.default_rng((seed, 0x1EA2))
    p_cell = fit_clicks(x, label, rows)
    fold = np.empty(len(rows), np.int64)
    for kind in (0, 1):
        of = np.flatnonzero(label[rows] == kind)
        fold[random.permutation(of)] = np.arange(len(of)) % _FOLDS
    before, after = np.zeros(len(label), bool), np.zeros(len(label), bool)
    for number in range(_FOLDS):
        train, test = rows[fold != number], rows[fold == number]
        p = fit_clicks(x, label, train)
        p_cell[test] = p[test]
        after[test] = p[test] >= 0.5
        if score is not None:
            before[test] = score[test] >= best_threshold(score[train], label[train] == 1)
    held = sample[label[sample] >= 0]
    few = len(held) < 2 * FEWEST or not (label[held] == 1).any()
    return Learned(
        p_cell, 0.5, len(rows), len(held),
        None if few or score is None else f1_of(before[held], label[held] == 1),
        None if few else f1_of(after[held], label[held] == 1),
        label_curve(x, label, held, seed, lambda p: p >= 0.5) if curve and not few else "",
    )  # fmt: skip


def best_threshold(score: Float64[np.ndarray, " n"], is_cell: Bool[np.ndarray, " n"]) -> float:
    """The score from which on candidates are kept for the highest F1 on these."""
    order = np.argsort(-score, kind="stable")
    tp = np.cumsum(is_cell[order])
    f1 = 2 * tp / (np.arange(1, len(order) + 1) + is_cell.sum())
    return float(score[order[int(np.argmax(f1))]])


def f1_of(kept: Bool[np.ndarray, " n"], is_cell: Bool[np.ndarray, " n"]) -> float:
    """F1 of kept candidates; 0 where none is right."""
    both = int(kept.sum() + is_cell.sum())
    return 2 * int((kept & is_cell).sum()) / both if both else 0.0


def label_curve(
    x: Float32[np.ndarray, "n d"],
    label: Int64[np.ndarray, " n"],
    held: Int64[np.ndarray, " k"],
    seed: int,
    kept: Callable[[np.ndarray], np.ndarray],
) -> str:
    """Expected gain of 50 more labels: F1 on half of the held-out clicks, by fits on the rest.

    `kept` says which candidates are kept by P(cell) of all.
    """
    test = np.sort(np.random.default_rng((seed, 0xC0DE)).permutation(held)[: max(len(held) // 2, FEWEST)])
    train = np.setdiff1d(np.flatnonzero(label >= 0), test)
    counts = [n for n in _COUNTS if n < 0.8 * len(train)] + [len(train)]
    if len(set(label[train].tolist())) < 2 or not (label[test] == 1).any():
        return ""
    values = {}
    for n in counts:
        drawn = [train[draw_labels(label[train], n, seed + k)] for k in range(_SEEDS)]
        values[n] = [f1_of(kept(fit_clicks(x, label, rows))[test], label[test] == 1) for rows in drawn]
    return LabelCurve("F1", values).sentence
