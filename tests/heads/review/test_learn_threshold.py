"""A detector's threshold learned from clicks: what is expected, what is taken, and the sentence about it."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.heads.review.learn_from_clicks import learn_from_clicks, standardised
from canvas_fm.heads.review.learn_threshold import ExpectedF1, LearnedThreshold, learn_threshold

N = 400


def made_up(cells_above: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, truth and scores of candidates that are cells from a score on."""
    random = np.random.default_rng(3)
    score = random.random(N)
    truth = (score > cells_above).astype(np.int64)
    x = np.stack([truth + random.normal(0, 0.3, N), random.normal(size=N), score], axis=1).astype(np.float32)
    return standardised(x), truth, score


def learned(cells_above: float, before: float, clicks: int = 100, lowest: float = 0.1) -> LearnedThreshold:
    x, truth, score = made_up(cells_above)
    sample = np.random.default_rng(4).permutation(N)[:clicks]
    label = np.full(N, -2)
    label[sample] = truth[sample]
    model = learn_from_clicks(x, label, sample, score, curve=False)
    assert model is not None
    return learn_threshold(x, label, sample, score, model.p_cell, before=before, lowest=lowest)


def test_expected_f1_is_that_of_certain_probabilities():
    random = np.random.default_rng(0)
    score, truth = random.random(60).round(1), random.integers(0, 2, 60)  # with ties
    expected = ExpectedF1.of(score, 0.3, 0.02)
    for threshold, f1 in zip(expected.grid, expected.at(truth.astype(float)), strict=True):
        kept = score >= threshold
        assert f1 == pytest.approx(2 * (kept & (truth == 1)).sum() / (kept.sum() + truth.sum()))


@pytest.mark.parametrize(("cells_above", "before"), [(0.6, 0.2), (0.3, 0.8)])
def test_a_threshold_that_does_not_fit_moves_to_where_the_cells_are(cells_above, before):
    found = learned(cells_above, before)
    assert found.taken
    assert found.threshold == pytest.approx(cells_above, abs=0.07)
    assert found.f1_after > found.f1_before + 0.1
    assert found.sentence("mine").startswith(f"threshold of mine from {before} to ")
    assert "on 100 held-out random answers its F1 is" in found.sentence("mine")
    assert "50 more labels are worth" in found.curve


def test_one_that_fits_stays_and_none_is_below_where_candidates_are_complete():
    fits = learned(0.5, 0.5)
    assert (fits.taken, fits.threshold) == (False, 0.5)
    assert "stays at 0.5" in fits.sentence("mine")
    assert learned(0.1, 0.8, lowest=0.4).best >= 0.4


def test_a_lower_threshold_needs_more_than_a_model_that_expects_it():
    _, truth, score = made_up(0.6)
    sample = np.flatnonzero(score > 0.9)[:12]  # cells by both thresholds: they speak for none
    label = np.full(N, -2)
    label[sample] = truth[sample]
    hopeful = np.full(N, 0.9)
    x = np.zeros((N, 1), np.float32)
    found = learn_threshold(x, label, sample, score, hopeful, before=0.7, lowest=0.1)
    assert found.best < 0.2
    assert not found.taken
