"""Statistics of a volume's detections by which its count is compared with those of held-out brains."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Real
from scipy.spatial import cKDTree

from canvas_fm.data.points.formats.read_write import voxel_um_of
from canvas_fm.data.points.points import Points

NEIGHBOUR_UM = 80.0
_BAND = 1.0  # log-odds above the threshold within which a detection is doubtful
_SAMPLE = 5000  # detections whose neighbours are counted, drawn with a fixed seed where there are more
_NONE = 0.1  # added before the logarithm: detections without a neighbour


class DetectionStats(NamedTuple):
    """Share of doubtful detections, deviation of their log-odds, and log of their mean neighbours.

    Doubtful is a score less than one unit of log-odds above the threshold, a neighbour a detection within
    `NEIGHBOUR_UM`, NaN where the voxel size is not stated.
    """

    doubtful: float
    deviation: float
    neighbours: float


def detection_stats(points: Points, threshold: float) -> DetectionStats:
    """The statistics of a volume's detections, from their scores and positions."""
    above = log_odds_above(points.columns["score"], threshold)
    voxel_um = voxel_um_of(points.meta)
    neighbours = np.nan if voxel_um is None else _neighbours(points.zyx * np.asarray(voxel_um))
    if not len(above):
        return DetectionStats(1.0, 0.0, neighbours)
    return DetectionStats(float((above < _BAND).mean()), float(above.std()), neighbours)


def log_odds_above(score: Real[np.ndarray, " n"], threshold: float) -> Float64[np.ndarray, " n"]:
    """Log-odds of scores over those of the threshold."""
    inside = np.clip(np.asarray(score, np.float64), 1e-6, 1 - 1e-6)
    return np.log(inside / (1 - inside)) - np.log(threshold / (1 - threshold))


def _neighbours(um: Float64[np.ndarray, "n 3"]) -> float:
    """Log of the mean number of detections around one, within `NEIGHBOUR_UM`."""
    if not len(um):
        return float(np.log(_NONE))
    sample = um
    if len(um) > _SAMPLE:
        sample = um[np.random.default_rng(0).choice(len(um), _SAMPLE, replace=False)]
    within = cKDTree(um).query_ball_point(sample, NEIGHBOUR_UM, return_length=True)
    return float(np.log(_NONE + np.mean(within) - 1))
