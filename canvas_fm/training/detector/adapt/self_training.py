"""Self-training: a detector's confident detections in the unlabelled volume are labels beside the few given.

Two students are trained, each on the labels of one half and on pseudo-labels everywhere else; the other half
scores it. What is taken is the average of their weights, at the threshold that does best for both students on
all labels: each label is counted twice, by the student that saw it and by the one that did not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from canvas_fm.data.points.boxes import inside_boxes, whole
from canvas_fm.data.points.points import Points
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.load_model import Detector
from canvas_fm.training.detector.adapt.fine_tune import fine_tune, fine_tune_recipe
from canvas_fm.training.detector.adapt.label_folds import Counts, LabelFolds, best_threshold, logit
from canvas_fm.training.detector.optimizer_step import averaged_weights
from canvas_fm.training.detector.targets import Labelled

STUDENTS = 2
_MARGIN = 0.5  # in log-odds, above and below the threshold: what lies between is neither cell nor background
_HARD = 0.1  # of the crops around bright spots that are no cells
_CROPS = 480
_MOST_VOXELS = 16_000_000  # as the detector reads them, in which pseudo-labels are looked for
_BLOCK_ZYX = np.array([64, 160, 160])
_KEY = 0x5E1F  # keeps these draws apart from others with the same seed


def student_of(detector: Detector, net: HeatMapNet) -> Detector:
    """The detector whose net was trained on the new brain: its score is the heat alone.

    Brightness is in the teacher's score to make up for another brain, which the student has learned; beside
    it the order of detections gets worse. Scores that are taken against the strongest around stay so.
    """
    config, relative = detector.config, detector.config.relative
    if relative is None or not relative.weight:
        config = config.model_copy(update={"amplitude": None, "relative": None})
    return Detector(config, net)


@dataclass(frozen=True)
class Teacher:
    """Source of pseudo-labels: a detector's candidates in `boxes`, and its counts on the labels."""

    candidates: Points
    boxes: Int64[np.ndarray, "k 6"]
    counts: Counts


def unlabelled_boxes(labelled: Labelled, seed: int) -> Int64[np.ndarray, "k 6"]:
    """Boxes for pseudo-labels: the whole volume, or random blocks of it beside the labelled boxes.

    Blocks lie on a grid, so none covers another; labelled boxes come first, a place in two boxes is theirs.
    """
    volume = labelled.source.volume
    shape = np.asarray(volume.shape_zyx)
    ratio = np.asarray(labelled.um) / np.asarray(volume.voxel_um)
    if (shape / ratio).prod() <= _MOST_VOXELS:
        return whole(volume.shape_zyx)
    size = np.maximum(np.round(_BLOCK_ZYX * ratio), 1).astype(np.int64)
    grid = -(-shape // size)
    count = min(int(_MOST_VOXELS / _BLOCK_ZYX.prod()), int(grid.prod()))
    drawn = np.random.default_rng([_KEY, seed]).choice(int(grid.prod()), count, replace=False)
    start = np.stack(np.unravel_index(np.sort(drawn), grid), axis=1) * size
    blocks = np.concatenate([start, np.minimum(start + size, shape)], axis=1)
    return np.concatenate([labelled.boxes, blocks]).astype(np.int64)


def pseudo_labelled(labelled: Labelled, teacher: Teacher, threshold: float) -> Labelled:
    """The labels of the labelled boxes, and outside them the candidates that are surely cells.

    Sure are those half a unit of log-odds above the threshold. Those within it on either side are ignored.
    """
    zyx, score = teacher.candidates.zyx, teacher.candidates.columns["score"].astype(np.float64)
    above = logit(score) - logit(threshold)
    outside = ~inside_boxes(zyx, labelled.boxes) & inside_boxes(zyx, teacher.boxes)
    cells = zyx[outside & (above >= _MARGIN)]
    return replace(
        labelled,
        points_zyx=np.concatenate([labelled.inner_zyx, cells]),
        boxes=teacher.boxes,
        ignored_zyx=zyx[outside & (np.abs(above) < _MARGIN)],
    )


def students(
    detector: Detector, folds: LabelFolds, teacher: Teacher, steps: int, seed: int
) -> Iterator[tuple[int, HeatMapNet]]:
    """Of each fold of labels its number, and the net that was trained without them."""
    start = detector.config.threshold
    for number in range(folds.count):
        known = folds.fold != number
        others = replace(folds.labelled, boxes=folds.blocks[known])
        threshold = best_threshold(teacher.counts[:, known], seed, start)
        recipe = fine_tune_recipe(detector, others, steps, seed, hard=_HARD, crops=_CROPS)
        yield number, fine_tune(detector, others, recipe, also=pseudo_labelled(others, teacher, threshold))


def average(nets: Sequence[HeatMapNet]) -> HeatMapNet:
    """The net of the mean weights."""
    mean = nets[0]
    for number, net in enumerate(nets[1:], start=1):
        mean = averaged_weights(mean, net, number / (number + 1))
    return mean.eval().requires_grad_(False)
