"""Ranking, thresholds, calibration and intervals against plain loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from canvas_fm.evaluation.metrics.classification import (
    auc,
    auc_of_ranks,
    average_precision,
    balanced_accuracy,
    best_f1,
    bootstrap,
    calibration_error,
    ceiling,
    f1_at,
    reliability,
)


@pytest.fixture
def judged() -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties."""
    random = np.random.default_rng(0)
    is_cell = random.random(200) < 0.3
    return is_cell, np.round(random.normal(size=200) + is_cell, 1)


def test_ranking_is_that_of_scikit_learn(judged):
    is_cell, score = judged
    assert auc(is_cell, score) == pytest.approx(metrics.roc_auc_score(is_cell, score))
    assert average_precision(is_cell, score) == pytest.approx(metrics.average_precision_score(is_cell, score))
    assert auc(np.ones(4, bool), np.arange(4)) is None
    assert average_precision(np.zeros(4, bool), np.arange(4)) is None


def test_ranks_worked_out_once_give_the_same_area_of_every_draw(judged):
    is_cell, score = judged
    rank = np.unique(score, return_inverse=True)[1]
    random = np.random.default_rng(1)
    for rows in [np.arange(200), *random.integers(0, 200, (20, 200)), *random.integers(0, 200, (5, 3))]:
        assert auc_of_ranks(is_cell[rows], rank[rows]) == auc(is_cell[rows], score[rows])
    assert auc_of_ranks(np.zeros(0, bool), np.zeros(0, np.int64)) is None


def test_f1_counts_the_cells_that_no_candidate_stands_for(judged):
    is_cell, score = judged
    for threshold in (-1.0, 0.5, 9.0):
        assert f1_at(is_cell, score, threshold) == pytest.approx(
            metrics.f1_score(is_cell, score >= threshold, zero_division=0)
        )
    said = np.append(score >= 0.5, np.zeros(20, bool))
    assert f1_at(is_cell, score, 0.5, missed=20) == pytest.approx(
        metrics.f1_score(np.append(is_cell, np.ones(20, bool)), said)
    )
    assert average_precision(is_cell, score, missed=60) < average_precision(is_cell, score)


def test_the_best_threshold_gives_the_best_f1(judged):
    is_cell, score = judged
    threshold, best = best_f1(is_cell, score, missed=7)
    assert f1_at(is_cell, score, threshold, missed=7) == pytest.approx(best)
    assert best == pytest.approx(max(f1_at(is_cell, score, value, missed=7) for value in score))
    assert threshold not in score


def test_nothing_that_filters_beats_the_ceiling():
    assert ceiling(1.0) == 1.0
    perfect = np.ones(9, bool)
    assert f1_at(perfect, np.ones(9), 0.5, missed=3) == pytest.approx(ceiling(9 / 12))


def test_calibration_error_by_a_loop():
    random = np.random.default_rng(1)
    p = np.append(random.random(500), [0.0, 1.0])
    is_cell = random.random(502) < p**2
    by_hand = 0.0
    for low in range(10):
        mine = (p * 10 >= low) & ((p * 10 < low + 1) | (low == 9))
        by_hand += abs(p[mine].mean() - is_cell[mine].mean()) * mine.mean()
    assert calibration_error(is_cell, p) == pytest.approx(by_hand)
    assert reliability(is_cell, p).rows.sum() == 502
    sure = np.array([True, False])
    assert calibration_error(sure, sure.astype(float)) == 0


def test_balanced_accuracy_is_that_of_scikit_learn():
    random = np.random.default_rng(2)
    truth, said = random.choice(["a", "b", "c"], 90), random.choice(["a", "b", "c"], 90)
    assert balanced_accuracy(truth, said) == pytest.approx(metrics.balanced_accuracy_score(truth, said))


def test_whole_groups_are_drawn_where_there_are_enough():
    value = np.repeat(np.arange(6.0), 50)
    groups = np.repeat(list("abcdef"), 50)
    by_group = bootstrap(lambda rows: float(value[rows].mean()), groups)
    assert by_group is not None
    assert by_group.over == "6 groups"
    assert by_group.value == 2.5
    # The groups differ, the rows within them do not: only drawing groups shows any spread.
    assert by_group.high - by_group.low > 1.5
    by_row = bootstrap(lambda rows: float(value[rows].mean()), np.repeat(list("abc"), 100))
    assert by_row is not None
    assert by_row.over == "rows"
    assert by_row.high - by_row.low < 0.5
    assert bootstrap(lambda rows: None, groups) is None
