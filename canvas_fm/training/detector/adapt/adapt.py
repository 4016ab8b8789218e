"""Adapting a detector to a new brain by a few labelled cells, as much as cross-validation supports."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from canvas_fm.data.points.boxes import as_boxes, box_of, read_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.levels.resample import check_voxel_um
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, counted
from canvas_fm.evaluation.detection.checks import cells_of
from canvas_fm.files.options import takes
from canvas_fm.inference.detect.detect import detector_job
from canvas_fm.inference.detect.maxima.relative import reference_box
from canvas_fm.inference.detect.out_of_distribution import LOOKS, statistics_ranges, volume_statistics
from canvas_fm.inference.detect.tiles.detection_job import run
from canvas_fm.models.checkpoint import Detector, save_detector
from canvas_fm.progress import Advance, bar
from canvas_fm.training.detector.adapt.amplitude import FEWEST_CELLS, amplitude_detector
from canvas_fm.training.detector.adapt.fine_tune import fine_tune, fine_tune_recipe
from canvas_fm.training.detector.adapt.label_folds import Counts, LabelFolds
from canvas_fm.training.detector.adapt.options import AdaptOptions
from canvas_fm.training.detector.adapt.strategies import Strategy, StrategyScore, choose_way, score_strategies
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.detector.threshold import LOWEST_THRESHOLD
from canvas_fm.training.mae.crop_set import VolumeSource
from canvas_fm.version import __version__

_log = logging.getLogger(__name__)

_TRAINED: dict[str, tuple[Strategy, ...]] = {
    "none": (), "last": ("last layers",), "all": ("last layers", "all layers")
}  # fmt: skip
_DENSE = 2.0  # boxes that fill half of the box around them are detected in at once
_MOST_ZYX = np.array([256, 1024, 1024])  # of one detection around several boxes


@dataclass(frozen=True)
class Adaptation:
    """The adapted detector, and why it is what it is."""

    detector: Detector
    chosen: Strategy
    scores: tuple[StrategyScore, ...]
    cells: int
    sentence: str


@takes(AdaptOptions)
def adapt_detector(
    detector: Detector,
    volume: Volume | str | Path,
    points: Points | str | Path,
    boxes: Sequence[Sequence[int]] | np.ndarray | str | Path,
    *,
    out: str | Path,
    show: bool | None = None,
    **options: Any,
) -> Adaptation:
    """Adapt a detector to a volume of which a few cells are labelled, and write the result to `out`.

    `boxes` (rows z0, y0, x0, z1, y1, x1 or their file) are where all cells are labelled; what lies outside
    counts neither as cell nor as background. Four ways are tried: another threshold, blob amplitude in the
    score too (from 15 cells on), the last layers trained too, all layers trained too. Each is scored on
    spatial folds of the labels that it was not fitted on. Of those that surely beat the unadapted detector
    (`choose_way`) the best is taken; else weights and threshold stay as they were, which `sentence` says. The
    same seed gives the same detector on one machine.
    Raises CanvasError for fewer cells than two folds need.
    """
    opts = AdaptOptions.of(**options)
    labelled = _labelled(detector, volume, points, boxes, opts)
    tolerance_um = opts.tolerance_um or detector.config.min_distance_um
    folds = LabelFolds.of(labelled, tolerance_um, opts.folds)
    trained = _TRAINED[opts.layers]
    # Another voxel size was accepted above, with a resampling or without.
    ignore = labelled.source.resample_to is None
    detector.to(opts.device)
    with bar("adapting", 2 + folds.count * len(trained), unit="steps", show=show) as advance:
        candidates = _candidates(detector, labelled, tolerance_um, ignore)
        advance(1, "unadapted")
        counts_by_way: dict[Strategy, Counts] = {"threshold": folds.counts(candidates)}
        enough = len(labelled.inner_zyx) >= FEWEST_CELLS
        with_amplitude = amplitude_detector(detector, labelled) if enough else None
        if with_amplitude is not None:
            by_amplitude = _candidates(with_amplitude, labelled, tolerance_um, ignore)
            counts_by_way["amplitude"] = folds.counts(by_amplitude)
        for way in trained:
            counts_by_way[way] = _held_out_counts(detector, folds, way, opts, advance, ignore)
        scores = score_strategies(counts_by_way, folds, detector.config.threshold, opts.seed)
        best, chosen = choose_way(scores, len(labelled.inner_zyx))
        adapted = detector
        if chosen.way == "amplitude" and with_amplitude is not None:
            adapted, candidates = with_amplitude, by_amplitude
        if chosen.way in trained:
            adapted = _tuned(detector, labelled, chosen.way, opts)
            candidates = _candidates(adapted, labelled, tolerance_um, ignore)
        advance(1, chosen.way)
    sentence = _sentence(chosen, best, scores[0], len(labelled.inner_zyx), detector.name)
    if chosen.way == "unadapted":
        _log.warning("%s", sentence)
    config = adapted.config
    saved = save_detector(
        out,
        adapted.net,
        voxel_um=config.voxel_um,
        threshold=chosen.threshold,
        min_distance_um=config.min_distance_um,
        smooth_um=config.smooth_um,
        window_rule=config.window_rule,
        amplitude=config.amplitude,
        relative=config.relative,
        provenance=_provenance(detector, folds, candidates, scores, chosen, opts),
    )
    return Adaptation(saved, chosen.way, scores, len(labelled.inner_zyx), sentence)


def _labelled(
    detector: Detector,
    volume: Volume | str | Path,
    points: Points | str | Path,
    boxes: Sequence[Sequence[int]] | np.ndarray | str | Path,
    opts: AdaptOptions,
) -> Labelled:
    """The volume with its cells and boxes, checked; what is read at another voxel size is."""
    if detector.config.architecture.channels != 1:
        raise CanvasError(f"{detector.name} takes a background channel; only detectors of one can be adapted")
    opened = volume if isinstance(volume, Volume) else Volume.open(volume)
    cells, notes = cells_of(points if isinstance(points, Points) else Points.read(points), "points")
    for note in notes:
        _log.warning("%s: %s", opened.name, note)
    cells.check_inside(opened.shape_zyx)
    boxes_zyx = read_boxes(boxes) if isinstance(boxes, str | Path) else as_boxes(boxes)
    if (boxes_zyx[:, :3] < 0).any() or (boxes_zyx[:, 3:] > np.asarray(opened.shape_zyx)).any():
        raise CanvasError(
            f"the labelled boxes reach to {boxes_zyx.max(axis=0)[3:].tolist()}, beyond {opened.path}, "
            f"which is {opened.shape_zyx} (z, y, x)"
        )
    to_um = check_voxel_um(
        opened, detector.config.voxel_um, resample=opts.resample, ignore_voxel_size=opts.ignore_voxel_size
    )
    return Labelled(VolumeSource(opened.name, opened, to_um), cells.zyx, boxes_zyx)


def _held_out_counts(
    detector: Detector, folds: LabelFolds, way: Strategy, opts: AdaptOptions, advance: Advance, ignore: bool
) -> Counts:
    """Counts in every block by a net that was trained on the blocks of the other folds."""
    parts = []
    for number in range(folds.count):
        others = replace(folds.labelled, boxes=folds.blocks[folds.fold != number])
        tuned = _tuned(detector, others, way, opts)
        held_out = replace(folds.labelled, boxes=folds.blocks[folds.fold == number])
        counts = folds.counts(_candidates(tuned, held_out, folds.tolerance_um, ignore))
        parts.append(counts * (folds.fold == number)[None, :, None])
        advance(1, f"{way}, part {number + 1} of {folds.count}")
    return np.sum(parts, axis=0)


def _tuned(detector: Detector, labelled: Labelled, way: Strategy, opts: AdaptOptions) -> Detector:
    recipe = fine_tune_recipe(detector, labelled, opts.steps, opts.seed)
    net = fine_tune(detector, labelled, recipe, last=way == "last layers")
    return Detector(detector.config, net)


def _candidates(detector: Detector, labelled: Labelled, tolerance_um: float, ignore: bool) -> Points:
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
    if _voxels(hull) <= _DENSE * _voxels(boxes) and (hull[0, 3:] - hull[0, :3] <= _MOST_ZYX).all():
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


def _voxels(boxes: Int64[np.ndarray, "k 6"]) -> float:
    return float((boxes[:, 3:] - boxes[:, :3]).astype(float).prod(axis=1).sum())


def _sentence(
    chosen: StrategyScore, best: StrategyScore, before: StrategyScore, cells: int, name: str
) -> str:
    low, high = best.gain_interval
    by = (
        f"cross-validated on {counted(cells, 'cell')} F1 is {best.f1:.3f} where {name} as it was "
        f"has {before.f1:.3f}"
    )
    by += f" (95 % of the difference {low:+.3f} to {high:+.3f})"
    if chosen.way == "unadapted":
        return f"left as it was: no way of adapting is surely better. By {best.way} {by}; label more cells"
    return f"adapted by {chosen.way}: {by}"


def _provenance(
    detector: Detector,
    folds: LabelFolds,
    candidates: Points,
    scores: Sequence[StrategyScore],
    chosen: StrategyScore,
    opts: AdaptOptions,
) -> dict[str, Any]:
    """What the detector's config tells: of what it was made, by which labels, and how that was chosen."""
    labelled, before = folds.labelled, detector.config.provenance
    volume, boxes = labelled.source.volume, labelled.boxes
    mm3 = _voxels(boxes) * float(np.prod(volume.voxel_um)) * 1e-9
    inside = candidates.columns["score"][box_of(candidates.zyx, boxes) >= 0]
    ranges = statistics_ranges([volume_statistics(volume, inside, chosen.threshold, mm3)])
    known = before.get(LOOKS) or {}
    looks = {
        name: [min(ends[0], known.get(name, ends)[0]), max(ends[1], known.get(name, ends)[1])]
        for name, ends in ranges.items()
    }
    keys = ("start_trained_on", "trained_on")
    return {
        **{key: value for key, value in before.items() if key not in (*keys, "versions", "scores", LOOKS)},
        "start_trained_on": [volume for key in keys for volume in before.get(key) or []],
        "trained_on": [labelled.identity(detector.config.window_rule)],
        "adapted_from": detector.sha256,
        "adaptation": {
            "chosen": chosen.way,
            "cells": len(labelled.inner_zyx),
            "boxes": boxes.tolist(),
            "tolerance_um": folds.tolerance_um,
            "folds": folds.count,
            "cross_validated": [_rounded(asdict(score)) for score in scores],
            "options": opts.model_dump(mode="json", exclude={"device"}),
        },
        LOOKS: looks,
        "versions": {"canvas_fm": __version__, **{
            key: value for key, value in (before.get("versions") or {}).items() if key != "canvas_fm"
        }},
    }  # fmt: skip


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: [round(end, 4) for end in value]
        if isinstance(value, tuple)
        else round(value, 4)
        if isinstance(value, float)
        else value
        for key, value in values.items()
    }
