"""Probabilities that hold, and counts whose intervals do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import gamma
from sklearn.isotonic import IsotonicRegression

from canvas_fm.errors import BadInput
from canvas_fm.evaluation.metrics.classification import auc, calibration_error
from canvas_fm.heads.refine.counts.count_interval import CountSpread, Recall, counts_by_region, expected_count
from canvas_fm.heads.refine.head.calibration import fit_calibration, sigmoid


def drawn(n: int, seed: int, slope: float = 0.4, offset: float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = random.normal(size=n) * 3
    return logits, random.random(n) < sigmoid(slope * logits + offset)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_overconfident_logits_become_probabilities_that_hold_on_other_rows(method):
    calibration = fit_calibration(*drawn(4000, 0), method)
    logits, is_cell = drawn(20_000, 1)
    p = calibration(logits)
    assert calibration_error(is_cell, sigmoid(logits)) > 0.15
    assert calibration_error(is_cell, p) < 0.03
    assert p.sum() == pytest.approx(is_cell.sum(), rel=0.05)
    assert 0 < p.min() < p.max() < 1


def test_the_temperature_is_the_one_that_was_drawn_from():
    knots = fit_calibration(*drawn(50_000, 2)).knots
    assert knots[:, 0] == pytest.approx([0.4, -1.0], abs=0.05)


def test_isotonic_is_that_of_scikit_learn():
    logits, is_cell = drawn(500, 3)
    oracle = IsotonicRegression(y_min=1 / 502, y_max=501 / 502, out_of_bounds="clip").fit(logits, is_cell)
    new = np.linspace(-20, 20, 99)
    assert np.allclose(fit_calibration(logits, is_cell, "isotonic")(new), oracle.predict(new))


def test_temperature_keeps_the_ranking_and_never_turns_it_round():
    logits, is_cell = drawn(500, 4)
    assert auc(is_cell, fit_calibration(logits, is_cell)(logits)) == auc(is_cell, logits)
    useless = fit_calibration(logits, ~is_cell)(logits)
    assert np.ptp(useless) == pytest.approx(0, abs=1e-6)
    assert useless.mean() == pytest.approx((~is_cell).mean(), abs=0.01)


def test_perfect_separation_gives_no_certainty():
    logits = np.array([-3.0, -2, -1, 1, 2, 3])
    p = fit_calibration(logits, logits > 0)(logits)
    assert 0.01 < p.min() < 0.3
    assert 0.7 < p.max() < 0.99


def test_none_and_an_unknown_method():
    assert fit_calibration(*drawn(50, 5), "none")(np.array([0.0, 2.0])) == pytest.approx([0.5, 0.8807970779])
    with pytest.raises(BadInput, match="give one of temperature"):
        fit_calibration(*drawn(50, 5), "beta")


def test_independent_rows_are_counted_within_their_interval_nine_times_of_ten():
    random = np.random.default_rng(6)
    held = []
    for _ in range(400):
        p = random.random(200)
        count = expected_count(p)
        held.append(count.low <= (random.random(200) < p).sum() <= count.high)
    assert 0.86 < np.mean(held) < 0.95


def test_what_regions_share_widens_the_interval():
    """Each region is off as a whole by a quarter: independent rows would claim far too much."""
    random = np.random.default_rng(7)

    def region() -> tuple[np.ndarray, np.ndarray]:
        p = random.uniform(0.2, 0.6, 300)
        return p, random.random(300) < np.clip(p * random.normal(1, 0.25), 0, 1)

    parts = [region() for _ in range(40)]
    p, is_cell = (np.concatenate(values) for values in zip(*parts, strict=True))
    spread = CountSpread.of(p, is_cell, np.repeat(np.arange(40), 300))
    assert spread.regions == 40
    assert spread.shared == pytest.approx(0.25, abs=0.08)
    new = [region() for _ in range(200)]
    counts = [(expected_count(p, spread), expected_count(p), cells.sum()) for p, cells in new]
    assert np.mean([wide.low <= true <= wide.high for wide, _, true in counts]) > 0.85
    assert np.mean([narrow.low <= true <= narrow.high for _, narrow, true in counts]) < 0.5


def test_counts_stay_between_nothing_and_every_row():
    assert expected_count(np.array([])) == (0, 0, 0)
    count = expected_count(np.array([0.5, 0.5]))
    assert (count.low, count.high) == (0.0, pytest.approx(2.0, abs=0.2))
    assert count.high <= 2
    by_name = counts_by_region(np.array([0.5, 1.0, 1.0]), ["CTX", "HPF", "HPF"])
    assert by_name["HPF"] == (2, 2, 2)


def test_a_count_that_is_open_by_a_factor_has_a_lower_end_above_nothing_and_a_high_upper_end():
    p = np.full(500, 0.4)
    variance = np.sum(p * (1 - p))
    for shared, factor in ((0.02, 1.645), (0.36, 1.645), (0.36, 2.7)):
        count = expected_count(p, CountSpread(shared, factor, 11))
        deviation = factor / 1.645 * np.sqrt(variance + (shared * 200) ** 2)
        oracle = gamma((200 / deviation) ** 2, scale=deviation**2 / 200)
        assert (count.low, count.high) == pytest.approx(oracle.ppf([0.05, 0.95]), rel=1e-3)
        assert 0 < count.low < 200 < count.high
    # A normal distribution of that deviation would begin at nothing.
    assert 2.7 * 0.36 * 200 > 190
    assert expected_count(p, CountSpread(0.36, 2.7, 11)).low > 40


def test_the_less_is_known_the_wider_the_interval():
    p = np.full(100, 0.5)
    counts = [expected_count(p, CountSpread(shared, 1.645, 5), Recall(0.9, 0.05, 3))
              for shared in np.linspace(0, 6, 40)]  # fmt: skip
    assert (np.diff([count.low for count in counts]) <= 1e-9).all()
    assert (np.diff([count.high for count in counts]) >= -1e-9).all()
    assert counts[-1].low < 50 < counts[-1].high


def test_regions_of_few_brains_that_err_together_count_as_few_brains():
    """Eight brains of six regions, each brain off as a whole: regions alone would claim to know more."""
    random = np.random.default_rng(11)

    def brain() -> tuple[np.ndarray, np.ndarray]:
        p = random.uniform(0.2, 0.6, 600)
        return p, random.random(600) < np.clip(p * random.normal(1, 0.3), 0, 1)

    held = {False: [], True: []}
    for _ in range(30):
        p, is_cell = (np.concatenate(values) for values in zip(*(brain() for _ in range(8)), strict=True))
        groups, regions = np.repeat(np.arange(8), 600), np.repeat(np.arange(48), 100)
        for whole in held:
            spread = CountSpread.of(p, is_cell, regions, groups if whole else None)
            for asked, cells in (brain() for _ in range(10)):
                count = expected_count(asked, spread)
                held[whole].append(count.low <= cells.sum() <= count.high)
    assert np.mean(held[True]) > 0.85
    assert np.mean(held[True]) >= np.mean(held[False])


def test_the_factor_takes_the_next_higher_deviation_than_nine_tenths_of_the_regions():
    """Conformal: of n regions it is the ⌈.9 (n + 1)⌉-th deviation that holds the next one with .9."""
    n, rows = 21, 400
    p, parts = np.full(n * rows, 0.5), np.repeat(np.arange(n), rows)
    off = np.arange(n) * 10 - 100  # cells beyond the expected 200 of each region
    is_cell = np.concatenate([np.arange(rows) < rows / 2 + more for more in off])
    deviations = np.sort(np.abs(off)) / np.sqrt(rows / 4)
    place = int(np.ceil(0.9 * (n + 1))) - 1
    assert CountSpread._factor(p, is_cell, parts, 0.0) == pytest.approx(deviations[place])
    assert deviations[place] > deviations[int(np.ceil(0.9 * (n - 1)))]
