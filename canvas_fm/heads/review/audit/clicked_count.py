"""The count among candidates from clicks in random order, corrected by a model where there is one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import t

from canvas_fm.heads.refine.counts.count_interval import COUNT_LEVEL
from canvas_fm.heads.review.audit.estimate import Estimate, StratifiedAnswers, estimate_share

_FEWEST = 10
_BLOCK = 4096  # rows that are looked at together, of which mostly the first are enough


def random_clicks(
    permutation: Int64[np.ndarray, " n"], label: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " k"]:
    """The longest beginning of the random order in which every row has an answer: a random sample of all.

    `label` is 1, 0, -1 for unsure and -2 without an answer; rows that were answered in another order count
    too, since the random order was fixed before.
    """
    for start in range(0, len(permutation), _BLOCK):
        answered = label[permutation[start : start + _BLOCK]] > -2
        if not answered.all():
            return permutation[: start + int(np.argmin(answered))]
    return permutation


def clicked_count(
    label: Int64[np.ndarray, " n"], sample: Int64[np.ndarray, " k"], p_cell: Float64[np.ndarray, " n"] | None
) -> Estimate | None:
    """Cells among all candidates with a 90 % interval; None for fewer than ten sure answers in the sample.

    Without probabilities the share of cells in the sample; with them their sum, corrected by what the sample
    shows them to be wrong by (the difference estimator), unbiased however bad they are. Probabilities
    of answered rows have to come from a model that did not learn from that row.
    """
    sure = sample[label[sample] >= 0]
    n, of = len(sure), len(label)
    if n < _FEWEST:
        return None
    y = label[sure].astype(np.float64)
    if p_cell is None:
        share = estimate_share(StratifiedAnswers(np.array([of], np.int64), (y,)))
        return Estimate(*(of * value for value in share))
    wrong = y - p_cell[sure]
    value = float(p_cell.sum() + of * wrong.mean())
    # Half an answer in each direction: a model without a mistake in few clicks is not yet without mistakes.
    variance = (float(((wrong - wrong.mean()) ** 2).sum()) + 0.5) / n
    half = of * float(np.sqrt(variance * (1 - n / of) / n) * t.ppf((1 + COUNT_LEVEL) / 2, n - 1))
    least, most = float((label == 1).sum()), float(of - (label == 0).sum())
    return Estimate(
        min(max(value, least), most), min(max(value - half, least), most), min(max(value + half, least), most)
    )
