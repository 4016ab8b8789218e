"""Self-training: what becomes a pseudo-label, where it is looked for, and what the students must not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from canvas_fm import Points
from canvas_fm.data.points.boxes import box_of, whole
from canvas_fm.models.folder.network_config import AmplitudeConfig, RelativeConfig
from canvas_fm.models.load_model import Detector
from canvas_fm.training.detector.adapt import self_training
from canvas_fm.training.detector.adapt.label_folds import (
    THRESHOLDS,
    LabelFolds,
    counts_at,
)
from canvas_fm.training.detector.adapt.self_training import (
    Teacher,
    average,
    pseudo_labelled,
    student_of,
    students,
    unlabelled_boxes,
)
from canvas_fm.training.detector.adapt.strategies import score_strategies
from tests.training.detector.adapt.conftest import SHAPE, labelled
from tests.training.detector.adapt.test_adapt import adapt, brightness_detector, load_like

EVERYWHERE = np.array([[0, 0, 0, *SHAPE]])


def teacher(folds, zyx, score) -> Teacher:
    candidates = Points(np.asarray(zyx, float), {"score": np.asarray(score)})
    return Teacher(candidates, EVERYWHERE, folds.counts(candidates))


def test_sure_candidates_outside_the_labels_are_cells_doubtful_ones_neither_and_weak_ones_background(brain):
    few = labelled(brain)  # x below 40
    folds = LabelFolds.of(few, 8.0, 2)
    zyx = [[5, 9, 50], [5, 20, 50], [5, 30, 50], [5, 40, 50], [5, 9, 20]]
    score = [0.50, 0.35, 0.25, 0.10, 0.99]  # at a threshold of .3: above .414, above .206, below; inside
    both = pseudo_labelled(few, teacher(folds, zyx, score), 0.3)
    assert both.points_zyx == pytest.approx(np.concatenate([few.inner_zyx, zyx[:1]]))
    assert both.ignored_zyx == pytest.approx(np.array(zyx[1:3]))
    assert np.array_equal(both.boxes, EVERYWHERE)


def test_a_volume_of_moderate_size_is_looked_at_as_a_whole_a_large_one_in_blocks(brain, monkeypatch):
    few = labelled(brain, [[2, 3, 5, 20, 30, 34]])
    assert np.array_equal(unlabelled_boxes(few, 0), whole(SHAPE))
    monkeypatch.setattr(self_training, "_MOST_VOXELS", 20_000)
    monkeypatch.setattr(self_training, "_BLOCK_ZYX", np.array([10, 20, 20]))
    boxes = unlabelled_boxes(few, 0)
    assert np.array_equal(boxes[0], few.boxes[0])
    assert len(boxes) == 1 + 5  # of 3 × 4 × 4 blocks of 4000 voxels
    assert (boxes[:, 3:] <= SHAPE).all()
    corners = (boxes[1:, :3] + 0.5).astype(float)
    assert (box_of(corners, boxes[1:]) == np.arange(5)).all()  # none covers another
    assert np.array_equal(boxes, unlabelled_boxes(few, 0))
    assert not np.array_equal(boxes, unlabelled_boxes(few, 1))


def test_no_label_of_a_fold_reaches_the_student_that_it_scores(brain):
    """Cells of one half are moved: the other half's student stays the same, bit by bit."""
    few = labelled(brain, [[0, 0, 0, 24, 64, 64]])
    folds = LabelFolds.of(few, 4.0, 2)
    second = folds.fold[box_of(few.points_zyx, folds.blocks)] == 1
    moved = few.points_zyx + np.array([0, 3, 0]) * second[:, None]
    detector = load_like(brain)
    score = np.where(
        second, 0.5, 0.9
    )  # where cells of the second half have moved, it is best to leave it out
    weights = []
    for points in (few.points_zyx, moved):
        other = replace(folds, labelled=replace(few, points_zyx=points))
        taught = teacher(other, few.points_zyx, score)
        weights.append([net.state_dict() for _, net in students(detector, other, taught, 2, 0)])
    # Student 1 was trained without fold 1, where cells moved; student 0 with it.
    same = [
        all(torch.equal(a, b) for a, b in zip(before.values(), after.values(), strict=True))
        for before, after in zip(*weights, strict=True)
    ]
    assert same == [False, True]


def test_what_is_taken_has_the_mean_of_the_students_weights(brain):
    first, second, third = (load_like(brain).net for _ in range(3))
    for k, net in enumerate((first, second, third)):
        torch.nn.init.constant_(net.head.weight, float(k))
    mean = average([first, second, third])
    assert torch.allclose(mean.head.weight, torch.ones_like(mean.head.weight))
    assert not mean.training


def test_the_threshold_is_chosen_by_both_students_and_the_score_is_of_the_one_that_saw_no_label(brain):
    folds = LabelFolds.of(labelled(brain), 8.0, 2)
    held = np.zeros((len(THRESHOLDS), len(folds.blocks), 3), int)
    held[..., 0], held[..., 1] = 4, 4
    held[THRESHOLDS >= 0.8, :, 1] = 0  # by itself best from .8 on, where the students together find none
    both = held.copy()
    both[THRESHOLDS > 0.4001] = [0, 0, 8]
    counts = {"threshold": held, "self-training": held}
    *_, alone = score_strategies(counts, folds, 0.2, 0)
    *_, taught = score_strategies(counts, folds, 0.2, 0, chosen_by={"self-training": both})
    assert alone.threshold > 0.8
    assert taught.threshold <= 0.4
    tp, fp, fn = counts_at(held, taught.threshold).sum(axis=0)
    assert taught.f1 == pytest.approx(2 * tp / (2 * tp + fp + fn))


@pytest.mark.parametrize(("weight", "kept"), [(0.0, False), (0.3, True), (None, False)])
def test_a_students_score_is_its_heat_unless_scores_are_against_the_strongest_around(brain, weight, kept):
    teaches = load_like(brain)
    relative = None if weight is None else RelativeConfig(weight=weight, rank=3, block_um=300.0, least=0.06)
    amplitude = AmplitudeConfig(
        sigma_um=5.0, weight=0.75, unit=64.0, relative="typical" if weight is not None else False
    )
    config = teaches.config.model_copy(update={"amplitude": amplitude, "relative": relative})
    student = student_of(Detector(config, teaches.net), load_like(brain).net)
    assert (student.config.amplitude is not None, student.config.relative is not None) == (kept, kept)
    assert (student.config.threshold, student.config.window_rule) == (config.threshold, config.window_rule)


def test_self_training_is_one_of_the_ways_and_the_same_seed_gives_the_same_detector(brain, tmp_path):
    before = brightness_detector(tmp_path / "d", 0.05)
    first, second = (adapt(brain, before, tmp_path / n, layers="self", steps=1) for n in "ab")
    assert [score.way for score in first.scores] == ["unadapted", "threshold", "amplitude", "self-training"]
    assert first.detector.sha256 == second.detector.sha256
