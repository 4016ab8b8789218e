"""A detector's threshold learned from clicks, its F1 on held-out clicks, and what more clicks would bring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from canvas_fm.errors import counted
from canvas_fm.evaluation.domains.scores import THRESHOLDS
from canvas_fm.heads.review.learn_from_clicks import FEWEST, f1_of, label_curve

_GAIN = 0.03  # of the expected F1, for which a threshold is raised
# Share of resampled held-out clicks in which a threshold has to be better: with so few cells, and with more.
_FEW_CELLS, _SURE_OF_FEW, _SURE = 15, 0.99, 0.9
_RESAMPLES = 400
_KEY = 0x7B4E5


@dataclass(frozen=True)
class LearnedThreshold:
    """The threshold of highest expected F1, whether it is taken, and F1 on held-out clicks by each.

    Taken where nine of ten resamples of the held-out clicks are for it; a higher one also where the expected
    F1 gains .03 and these clicks are not against it. Over eight domains and 50 to 200 clicks lower thresholds
    that were taken by what was expected alone lost up to .17: a model learned from uncertain clicks took too
    many weak candidates for cells. Higher ones lost nothing.
    """

    before: float
    best: float
    taken: bool
    answers: int
    held_out: int
    f1_before: float | None
    f1_after: float | None
    curve: str

    @property
    def threshold(self) -> float:
        """The threshold from here on."""
        return self.best if self.taken else self.before

    def sentence(self, detector: str) -> str:
        """Sentence about the gain of a detector of that name."""
        of = f"threshold of {detector}"
        known = ""
        if self.f1_before is not None and self.f1_after is not None:
            known = (
                f": on {counted(self.held_out, 'held-out random answer')} its F1 is "
                f"{self.f1_after:.2f} there, "
                f"{self.f1_before:.2f} before"
            )
        if self.taken:
            return (
                f"{of} from {self.before:.3g} to {self.best:.3g} by {counted(self.answers, 'answer')}{known}"
            )
        if self.best == self.before:
            return f"{of} stays at {self.before:.3g}, the best by {counted(self.answers, 'answer')}"
        return f"{of} stays at {self.before:.3g}: {self.best:.3g} is not surely better{known}"


def learn_threshold(
    x: Float32[np.ndarray, "n d"],
    label: Int64[np.ndarray, " n"],
    sample: Int64[np.ndarray, " k"],
    score: Float64[np.ndarray, " n"],
    p_cell: Float64[np.ndarray, " n"],
    *,
    before: float,
    lowest: float,
    seed: int = 0,
    curve: bool = True,
) -> LearnedThreshold:
    """The threshold at which candidates with this P(cell) have the highest expected F1.

    `p_cell` is out of fold for answered rows, as `learn_from_clicks` has it; `lowest` is the threshold from
    which on the candidates are complete. F1 is of the rows `sample`, answered in random order.
    """
    expected = ExpectedF1.of(score, before, lowest)
    f1_at, best = expected.at(p_cell), expected.best(p_cell)
    held = sample[label[sample] >= 0]
    is_cell = label[held] == 1
    old, new = score[held] >= before, score[held] >= best
    few = len(held) < 2 * FEWEST or not is_cell.any()
    gain = float(f1_at.max() - f1_at[expected.grid == before][0])
    sure = _SURE if is_cell.sum() >= _FEW_CELLS else _SURE_OF_FEW
    raised = best > before and gain >= _GAIN and f1_of(new, is_cell) >= f1_of(old, is_cell)
    taken = raised or _share_better(old, new, is_cell, seed) >= sure
    return LearnedThreshold(
        before, best, taken, int((label >= 0).sum()), len(held),
        None if few else f1_of(old, is_cell),
        None if few else f1_of(new, is_cell),
        label_curve(x, label, held, seed, lambda p: score >= expected.best(p)) if curve and not few else "",
    )  # fmt: skip


@dataclass(frozen=True)
class ExpectedF1:
    """Thresholds, candidates by falling score, and how many are kept at each threshold."""

    grid: Float64[np.ndarray, " t"]
    order: Int64[np.ndarray, " n"]
    kept: Int64[np.ndarray, " t"]

    @classmethod
    def of(cls, score: Float64[np.ndarray, " n"], before: float, lowest: float) -> ExpectedF1:
        order = np.argsort(-score, kind="stable").astype(np.int64)
        grid = np.unique([before, *THRESHOLDS[lowest <= THRESHOLDS].tolist()])
        return cls(grid, order, np.searchsorted(-score[order], -grid, side="right").astype(np.int64))

    def at(self, p_cell: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " t"]:
        """F1 at each threshold if every candidate is a cell with its probability."""
        true_positives = np.concatenate([[0.0], np.cumsum(p_cell[self.order])])[self.kept]
        return np.asarray(2 * true_positives / np.maximum(self.kept + p_cell.sum(), 1e-9))

    def best(self, p_cell: Float64[np.ndarray, " n"]) -> float:
        """The threshold of highest expected F1; the middle one of a plateau."""
        f1 = self.at(p_cell)
        top = np.flatnonzero(f1 >= f1.max() - 1e-9)
        return float(self.grid[top[len(top) // 2]])


def _share_better(
    old: Bool[np.ndarray, " k"], new: Bool[np.ndarray, " k"], is_cell: Bool[np.ndarray, " k"], seed: int
) -> float:
    """Share of resampled clicks in which the new choice has the higher F1."""
    if not len(is_cell):
        return 0.0
    drawn = np.random.default_rng([_KEY, seed]).integers(len(is_cell), size=(_RESAMPLES, len(is_cell)))
    f1 = [
        2 * (kept & is_cell)[drawn].sum(axis=1)
        / np.maximum(kept[drawn].sum(axis=1) + is_cell[drawn].sum(axis=1), 1)
        for kept in (old, new)
    ]  # fmt: skip
    return float((f1[1] > f1[0]).mean())
