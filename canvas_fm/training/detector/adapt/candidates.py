"""Candidates of a detector in and around labelled boxes, scored as in the whole volume."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from canvas_fm.data.points.boxes import box_of
from canvas_fm.data.points.points import Points
from canvas_fm.inference.detect.detect import detector_job
from canvas_fm.inference.detect.maxima.relative_score import reference_box
from canvas_fm.inference.detect.tiles.tiled_detection import run
from canvas_fm.models.load_model import Detector
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.detector.threshold import LOWEST_THRESHOLD

_DENSE = 2.0  # boxes that fill half of the box around them are detected in at once
_MOST_ZYX = np.array([256, 1024, 1024])  # of one detection around several boxes


def candidates_in_boxes(detector: Detector, labelled: Labelled, tolerance_um: float, ignore: bool) -> Points:
    """All that the detector finds above the lowest threshold in the labelled boxes and around them.

    Scores are those of a detection of the whole volume, to which the threshold applies: where they are
    relative to the strongest around, detection reaches as far beyond the boxes as that reference does.
    """
    volume, boxes = labelled.source.volume, labelled.boxes
    margin = np.ceil(tolerance_um / np.asarray(volume.voxel_um)).astype(np.int64)
    shape = np.asarray(volume.shape_zyx)
    grown = np.concatenate(
        [np.maximum(boxes[:, :3] - margin, 0), np.minimum(boxes[:, 3:] + margin, shape)], axis=1
    )
    hull = np.concatenate([grown[:, :3].min(axis=0), grown[:, 3:].max(axis=0)])[None]
    if voxels_of(hull) <= _DENSE * voxels_of(boxes) and (hull[0, 3:] - hull[0, :3] <= _MOST_ZYX).all():
        grown = hull
    relative, parts = detector.config.relative, []
    margin_um = 2 * max(*volume.voxel_um, *labelled.um)
    for row, box in enumerate(grown):
        if relative is not None:
            box = reference_box(box, volume.shape_zyx, volume.voxel_um, margin_um, relative)
        job = detector_job(
            detector, volume, threshold=LOWEST_THRESHOLD, box=box.tolist(),
            resample=labelled.source.resample_to is not None, ignore_voxel_size=ignore,
            device=detector.device,
        )  # fmt: skip
        points = run(job, show=False)
        # A place in two boxes is found twice: it counts in the first.
        keep = box_of(points.zyx, grown) == row
        parts.append((points.zyx[keep], points.columns["score"][keep]))
    zyx, score = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Points(zyx, {"score": score})


def voxels_of(boxes: Int64[np.ndarray, "k 6"]) -> float:
    return float((boxes[:, 3:] - boxes[:, :3]).astype(float).prod(axis=1).sum())
