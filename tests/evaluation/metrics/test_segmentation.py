"""Panoptic quality against the formula by brute force, and against MONAI's."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.metrics.segmentation import panoptic_quality


def boxes(
    random: np.random.Generator, shape: tuple[int, ...] = (12, 14, 16)
) -> tuple[np.ndarray, np.ndarray]:
    """True boxes, and predictions that are these moved, cut, joined or invented."""
    truth, predicted = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for label in range(1, random.integers(2, 9)):
        start = random.integers(0, np.array(shape) - 4)
        box = tuple(slice(at, at + size) for at, size in zip(start, random.integers(2, 6, 3), strict=True))
        truth[box] = label * 3
        moved = tuple(slice(max(0, one.start + random.integers(-1, 2)), one.stop) for one in box)
        if random.random() < 0.8:
            predicted[moved] = 100 - label
    return predicted, truth


def brute_force(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int, int, float]:
    tp, total = 0, 0.0
    ours, theirs = (np.unique(one[one > 0]) for one in (predicted, truth))
    for a in ours:
        for b in theirs:
            iou = ((predicted == a) & (truth == b)).sum() / ((predicted == a) | (truth == b)).sum()
            if iou > 0.5:
                tp, total = tp + 1, total + iou
    return tp, len(ours) - tp, len(theirs) - tp, total


def test_it_is_the_formula_and_monais_on_200_random_volumes():
    import torch
    from monai.metrics.panoptic_quality import compute_panoptic_quality

    random, matched = np.random.default_rng(0), 0
    for _ in range(200):
        predicted, truth = boxes(random)
        found = panoptic_quality(predicted, truth, block=7, show=False)
        assert found == pytest.approx(brute_force(predicted, truth))
        matched += found.tp
        if truth.any() and predicted.any():
            for name, ours in (("pq", found.pq), ("rq", found.rq), ("sq", found.sq)):
                theirs = compute_panoptic_quality(
                    torch.from_numpy(predicted), torch.from_numpy(truth), metric_name=name, smooth_numerator=0
                ) if found.tp else 0.0  # fmt: skip
                assert ours == pytest.approx(float(theirs), abs=1e-6)
    assert matched > 200


def test_blocks_of_a_store_give_what_the_whole_gives(tmp_path):
    predicted, truth = boxes(np.random.default_rng(4), (40, 50, 45))
    stores = []
    for name, labels in (("a", predicted), ("b", truth)):
        with Volume.create(
            tmp_path / f"{name}.zarr", labels.shape, voxel_um=(1, 1, 1), dtype="uint32"
        ) as writer:
            writer.write((0, 0, 0), labels.astype(np.uint32))
        stores.append(Volume.open(tmp_path / f"{name}.zarr"))
    assert panoptic_quality(*stores, block=16) == panoptic_quality(predicted, truth, block=1000)


def test_edges_of_the_definition():
    empty, one = np.zeros((3, 3, 3), int), np.ones((3, 3, 3), int)
    assert panoptic_quality(empty, empty).pq == 1
    assert (panoptic_quality(empty, one).pq, panoptic_quality(one, one).pq) == (0, 1)
    half = one.copy()
    half[0] = 0
    half[1, :, :2] = 0  # 12 of 27 voxels: an IoU under a half is no match
    assert panoptic_quality(half, one).as_dict() == {"pq": 0, "rq": 0, "sq": 0, "tp": 0, "fp": 1, "fn": 1}
    small = one.copy()
    small[0, 0, 0] = 2
    assert panoptic_quality(small, one, min_voxels=2).fp == 0
    with pytest.raises(CanvasError, match="have shape"):
        panoptic_quality(one, np.ones((3, 3, 4), int))
    with pytest.raises(CanvasError, match="whole numbers"):
        panoptic_quality(one, Volume.from_array(np.ones((3, 3, 3), np.float32), voxel_um=(1, 1, 1)))


def test_labels_below_zero_are_no_labels():
    labels = np.zeros((4, 4, 4), np.int16)
    with pytest.raises(CanvasError, match="numbers from 0 up; one of the two holds -3"):
        panoptic_quality(labels, labels - 3)
