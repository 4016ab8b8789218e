"""Folds of a few labels: blocks, their counts, and thresholds that held-out labels did not choose."""

from __future__ import annotations

import numpy as np

from canvas_fm import Points
from canvas_fm.training.detector.adapt.label_folds import (
    THRESHOLDS,
    LabelFolds,
    best_threshold,
    cross_fitted,
    cut_into_blocks,
    f1_of,
)
from tests.training.detector.adapt.conftest import SHAPE, VOXEL_UM, labelled


def test_blocks_tile_the_boxes_and_folds_are_slabs_that_hold_cells(brain):
    boxes = np.array([[0, 0, 0, 24, 64, 40], [2, 10, 40, 20, 30, 64]])
    blocks = cut_into_blocks(boxes, VOXEL_UM, 8.0)
    covered = np.zeros(SHAPE, int)
    for z0, y0, x0, z1, y1, x1 in blocks:
        covered[z0:z1, y0:y1, x0:x1] += 1
    expected = np.zeros(SHAPE, int)
    for z0, y0, x0, z1, y1, x1 in boxes:
        expected[z0:z1, y0:y1, x0:x1] += 1
    assert np.array_equal(covered, expected)
    assert ((blocks[:, 3:] - blocks[:, :3]) * VOXEL_UM >= 8.0 - 1e-9).all()
    folds = LabelFolds.of(labelled(brain, boxes), 8.0, 3)
    assert folds.count == 3
    cells = folds.counts(Points(np.empty((0, 3)), {"score": np.empty(0)}))[0, :, 2]
    assert [cells[folds.fold == k].sum() >= 4 for k in range(3)] == [True] * 3


def test_counts_of_a_block_are_those_of_scoring_it_alone(brain):
    from canvas_fm.evaluation.detection.score import evaluate

    random = np.random.default_rng(2)
    candidates = Points(
        np.concatenate([brain[1] + random.normal(0, 0.7, brain[1].shape), random.random((40, 3)) * SHAPE]),
        {"score": random.random(len(brain[1]) + 40).astype(np.float32)},
    )
    folds = LabelFolds.of(labelled(brain), 8.0, 3)
    counts = folds.counts(candidates)
    for at in (0, 60, 120):
        for block in (0, len(folds.blocks) - 1):
            alone = evaluate(
                candidates, brain[1], voxel_um=VOXEL_UM, tolerance_um=8.0, within=folds.blocks[[block]],
                threshold=THRESHOLDS[at], chance=False,
            ).counts  # fmt: skip
            assert counts[at, block].tolist() == [alone.tp, alone.fp, alone.fn]


def test_a_fold_is_scored_at_a_threshold_that_its_own_labels_did_not_choose():
    counts = np.zeros((len(THRESHOLDS), 4, 3), np.int64)
    counts[:, :, 2] = 5  # nothing found
    high, low = THRESHOLDS > 0.5, THRESHOLDS <= 0.5
    counts[np.ix_(high, [0, 1])] = [5, 0, 0]  # the first fold is right above .5
    counts[np.ix_(low, [2, 3])] = [5, 0, 0]  # and the second below
    fold = np.array([0, 0, 1, 1])
    assert best_threshold(counts[:, :2], 0, 0.5) > 0.5 > best_threshold(counts[:, 2:], 0, 0.505)
    assert cross_fitted(counts, fold, 0, 0.5)[:, 0].tolist() == [0, 0, 0, 0]  # each at the other's threshold


def test_a_threshold_moves_for_a_gain_in_all_blocks_and_not_for_one_block_more_than_another_loses():
    def counts(found_above: list[int]) -> np.ndarray:
        """Of ten cells in each block five are found, and so many at thresholds above .6."""
        found = np.full((len(THRESHOLDS), len(found_above)), 5)
        found[THRESHOLDS > 0.6] = found_above
        return np.stack([found, np.zeros_like(found), 10 - found], axis=-1)

    assert best_threshold(counts([6] * 8), 0, 0.3) > 0.6
    uneven = counts([10, 2, *[5] * 6])
    assert f1_of(uneven[-1].sum(axis=0)) > f1_of(uneven[0].sum(axis=0))
    assert best_threshold(uneven, 0, 0.3) < 0.6
