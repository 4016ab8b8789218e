"""Out-of-distribution check: whether a volume resembles those of the threshold's calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume, WindowRule
from canvas_fm.inference.detect.heatmap import NetHeatMapper
from canvas_fm.inference.detect.tiles.tiled_detection import TiledDetection
from canvas_fm.models.folder.training_volumes import volume_in_training

LOOKS = "looks"  # the key in a detector's provenance
UNLIKE = "unlike_calibration"  # the key in the metadata of detections
_SLACK = 2.0  # so many times beyond what was seen is still alike
_MEDIAN = WindowRule("median", 0.0, 1.0)
_MEANS = {
    "contrast": "its 99.9th percentile is {value:.3g} times its median",
    "cells_mm3": "{value:,.3g} cells were found per mm³",
    "strong": "{value:.0%} of the cells score in the upper half between threshold and 1",
}


def volume_statistics(volume: Volume, scores: np.ndarray, threshold: float, mm3: float) -> dict[str, float]:
    """Three statistics without labels: contrast, density of cells, separation of scores."""
    detected = scores[scores >= threshold]
    look = {
        "contrast": volume.window.high / max(volume.window_by(_MEDIAN).high, 1e-9),
        "cells_mm3": len(detected) / mm3,
    }
    if len(detected) >= 20:
        look["strong"] = float((detected >= (1 + threshold) / 2).mean())
    return look


def statistics_ranges(looks: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Range of each statistic over the volumes of the threshold's calibration."""
    names = dict.fromkeys(name for look in looks for name in look)
    return {
        name: [min(values), max(values)]
        for name in names
        if (values := [round(look[name], 4) for look in looks if name in look])
    }


def unfamiliar_volume_warnings(job: TiledDetection, points: Points) -> list[str]:
    """Warnings of a volume outside the ranges of the calibration volumes, or one of the training volumes.

    And of a box too small for scores that are relative to the strongest around.
    """
    if not isinstance(job.heat, NetHeatMapper):
        return []
    detector = job.heat.detector
    seen = _small_box_warnings(job)
    volume = job.volumes[0]
    if trained_on := volume_in_training(detector.config.provenance, volume.name, volume.crop_of):
        seen += [
            f"{detector.name} was trained on {trained_on}: what it finds there says nothing of how it does "
            "on a volume that it has not seen"
        ]
    if not (odd := _unlike_calibration(job, points)):
        return seen
    return [
        *seen,
        f"{volume.name} looks unlike what {detector.name} was calibrated on: {odd}. Look "
        "at the detections and give --threshold by them, or label a few cells of this brain and adapt the "
        "detector to it (canvas-fm adapt)",
    ]


def mark_unlike(job: TiledDetection, points: Points) -> Points:
    """The detections; where the volume looks unlike the calibration volumes, their metadata say by what.

    The recall that was measured on such volumes is then not known to hold, which counts go by.
    """
    odd = _unlike_calibration(job, points)
    return Points(points.zyx, points.columns, points.meta | {UNLIKE: odd}) if odd else points


def _unlike_calibration(job: TiledDetection, points: Points) -> str:
    """Statistics of a volume outside the ranges of the calibration volumes; empty where none is."""
    if not isinstance(job.heat, NetHeatMapper):
        return ""
    detector = job.heat.detector
    known: Any = detector.config.provenance.get(LOOKS)
    if not known:
        return ""
    mm3 = job.region.voxels * float(np.prod(job.voxel_um)) * 1e-9
    own = detector.config.threshold  # known ranges are of detections at it, not of a lower one's candidates
    look = volume_statistics(job.volumes[0], points.columns["score"], max(own, job.threshold), mm3)
    odd = []
    for name, value in look.items():
        low, high = known.get(name, (0.0, np.inf))
        if job.threshold > own and name != "contrast":  # what scores less is not among the rows
            low, high = 0.0, high if name == "cells_mm3" else np.inf
        if not low / _SLACK <= value <= high * _SLACK:
            odd.append(f"{_MEANS[name].format(value=value)}, where {low:.3g} to {high:.3g} were seen")
    return "; ".join(odd)


def _small_box_warnings(job: TiledDetection) -> list[str]:
    """A warning where scores are relative to the detections around and the box ends before they do."""
    if job.relative is None:
        return []
    least_um, which = 2 * job.relative.block_um, "strongest" if job.relative.weight else "other"
    for axis, n, whole, um in zip("zyx", job.region.size, job.extent.size, job.voxel_um, strict=True):
        if n < whole and n * um < least_um:
            return [
                f"scores of {job.meta['detector']} are relative to the {which} cells some {least_um:g} um "
                f"around, and the box is {n * um:.0f} um along {axis}: the whole volume gives other scores. "
                f"Detect in a box of {least_um:g} um and more and keep the cells of this one"
            ]
    return []
