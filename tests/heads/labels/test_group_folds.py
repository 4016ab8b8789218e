"""Folds: whole brains, else what is refused or marked."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.errors import CanvasError
from canvas_fm.heads.labels.group_folds import grouped_folds


def labels(n: int) -> np.ndarray:
    return np.arange(n) % 3 == 0


def test_no_brain_stands_on_both_sides_and_every_row_is_judged_once():
    groups = np.random.default_rng(0).choice(list("abcdefg"), 300)
    folds = grouped_folds(groups, labels(300), folds=3)
    judged = np.concatenate([test for _, test in folds])
    assert sorted(judged) == list(range(300))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
    assert folds.count == 3
    assert folds.by == "brain"
    assert folds.warning is None


def test_fewer_brains_than_folds_leave_one_out_each_time():
    groups = np.repeat(["a", "b"], 30)
    folds = grouped_folds(groups, labels(60), folds=5)
    assert folds.count == 2
    assert all(len(set(groups[test])) == 1 for _, test in folds)


def test_folds_hold_about_as_many_rows():
    groups = np.repeat(["a", "b", "c", "d"], [90, 30, 30, 30])
    folds = grouped_folds(groups, labels(180), folds=2)
    assert sorted(np.bincount(folds.fold)) == [90, 90]


def test_a_random_split_inside_one_brain_is_refused_unless_forced_and_then_marked():
    groups = np.full(60, "brain")
    with pytest.raises(CanvasError, match=r"one brain \(brain\).*both sides"):
        grouped_folds(groups, labels(60))
    forced = grouped_folds(groups, labels(60), folds=4, force_random=True)
    assert forced.by == "random"
    assert "forced" in str(forced.warning)
    by_region = grouped_folds(groups, labels(60), regions=np.arange(60) // 20, force_random=True)
    assert by_region.by == "region"
    assert "regions" in str(by_region.warning)
    for train, test in by_region:
        assert not set(train // 20) & set(test // 20)


@pytest.mark.parametrize(
    ("is_cell", "message"),
    [
        (np.ones(10, bool), "one class only"),
        (np.zeros(10, bool), "all 10 labels are non-cells"),
        (np.arange(10) < 2, "fewer than 5 folds; label more, or give --folds 2"),
    ],
)
def test_labels_that_cannot_be_split(is_cell, message):
    with pytest.raises(CanvasError, match=message):
        grouped_folds(np.arange(10) % 5, is_cell)


def test_a_class_that_only_one_brain_has_cannot_be_held_out():
    groups = np.repeat(["a", "b"], 20)
    with pytest.raises(CanvasError, match="without a all labels are of one class"):
        grouped_folds(groups, (groups == "a") & labels(40), folds=2)
