"""Choice of a detector's fixed threshold: highest mean F1 over the training volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from canvas_fm.data.points.boxes import inside_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import ZyxUm
from canvas_fm.data.volume.window import Window
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.figure import score_figure
from canvas_fm.evaluation.detection.score import Score, evaluate
from canvas_fm.evaluation.domains.scores import FEWEST, THRESHOLDS, f1_on, threshold_of_highest_f1
from canvas_fm.inference.detect.detect import detector_job
from canvas_fm.inference.detect.maxima.relative_score import reference_box
from canvas_fm.inference.detect.out_of_distribution import statistics_ranges, volume_statistics
from canvas_fm.inference.detect.tiles.tiled_detection import run
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.folder.training_volumes import volume_in_training
from canvas_fm.models.load_model import Detector, DetectorConfig
from canvas_fm.training.detector.phantoms import calibration_phantoms
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.run.trainer import Report

LOWEST_THRESHOLD = 0.02  # candidates below it do not count in the choice


@dataclass(frozen=True)
class ChosenThreshold:
    """The fixed threshold, and a row of metrics for each volume at it."""

    threshold: float
    rows: list[dict[str, Any]]
    ranges: dict[str, list[float]]  # of the statistics of the volumes that it was chosen on
    scored_by: dict[str, str]  # of volumes that a fold's detector scored: its sha256

    def summary(self) -> list[dict[str, Any]]:
        """Scores of the volumes as recorded in the model's config."""
        keys = ("volume", "held_out", "tolerance_um", "cells", "f1", "best_f1", "best_threshold")
        return [{key: row[key] for key in keys} for row in self.rows]


def choose_threshold(
    recipe: DetectorRecipe,
    net: HeatMapNet,
    training: Sequence[Labelled],
    held_out: Sequence[Labelled],
    voxel_um: ZyxUm,
    step: int,
    report: Report,
    *,
    figures: Path | None = None,
    unseen: Mapping[str, Detector] | None = None,
) -> ChosenThreshold:
    """Choose the threshold on the training volumes, at each contrast of the recipe; score all volumes.

    `held_out` are scored at that threshold and do not count in its choice, nor do volumes of a few cells.
    With `unseen`, by volume name, a training volume is scored by that detector, which was trained without it:
    a net is too sure of the cells that it was trained on, and the threshold comes out too low.
    """
    detector = Detector(_config(recipe, net, voxel_um), net)
    curves: dict[str | None, list[np.ndarray]] = {}
    scored: list[tuple[Labelled, bool, Points]] = []
    chosen_on_sets: list[tuple[Labelled, Points]] = []
    chosen_on = recipe.detection.chosen_on
    if recipe.phantoms is not None and chosen_on != "volumes":
        phantoms = calibration_phantoms(
            recipe.phantoms, voxel_um, recipe.data.crop_zyx, recipe.model.channels
        )
        report("choosing the threshold on phantoms")
        chosen_on_sets = [(phantom, _candidates(recipe, detector, phantom, 1.0)) for phantom in phantoms]
        curves["phantoms"] = [f1_curve(recipe, phantom, candidates) for phantom, candidates in chosen_on_sets]
    scored_volumes = () if chosen_on == "phantoms" else training
    # A volume of a few cells would count as much as one of hundreds, and a single false one much more.
    counted = {id(labelled) for labelled in training if len(labelled.inner_zyx) >= FEWEST} or {
        *map(id, training)
    }
    for labelled in [*scored_volumes, *held_out]:
        is_held_out = any(labelled is other for other in held_out)
        report(f"evaluating {labelled.source.name}")
        scorer = detector if is_held_out else (unseen or {}).get(labelled.source.name, detector)
        candidates = _candidates(recipe, scorer, labelled, 1.0)
        scored.append((labelled, is_held_out, candidates))
        if not is_held_out and id(labelled) in counted:
            for gain in recipe.detection.gains:
                points = candidates if gain == 1 else _candidates(recipe, scorer, labelled, gain)
                of_marker = curves.setdefault(labelled.source.volume.marker, [])
                of_marker.append(f1_curve(recipe, labelled, points))
    # Every marker counts the same.
    mean = np.mean([np.mean(of_marker, axis=0) for of_marker in curves.values()], axis=0)
    threshold = threshold_of_highest_f1(mean, recipe.detection.spread)
    rows = []
    for labelled, is_held_out, candidates in scored:
        score = _score(recipe, labelled, candidates, threshold)
        rows.append(_row(recipe, labelled, is_held_out, score, threshold, step))
        if figures is not None:
            name = f"{labelled.source.name.replace('/', '_')}_{step:07d}.png"
            title = (
                f"{labelled.source.name}{', held out' if is_held_out else ''}, step {step}, at {threshold}"
            )
            score_figure(score, labelled.source.volume, figures / name, title=title)
    chosen_on_sets += [(volume, candidates) for volume, is_held_out, candidates in scored if not is_held_out]
    return ChosenThreshold(
        threshold,
        rows,
        statistics_ranges([_statistics(*part, threshold) for part in chosen_on_sets]),
        {name: scorer.sha256 for name, scorer in (unseen or {}).items()},
    )


def _statistics(labelled: Labelled, candidates: Points, threshold: float) -> dict[str, float]:
    sizes = labelled.boxes[:, 3:] - labelled.boxes[:, :3]
    mm3 = float(sizes.prod(axis=1).sum() * np.prod(labelled.source.volume.voxel_um)) * 1e-9
    scores = candidates.columns["score"][inside_boxes(candidates.zyx, labelled.boxes)]
    return volume_statistics(labelled.source.volume, scores, threshold, mm3)


def detectors_by_unseen_volume(
    recipe: DetectorRecipe, training: Sequence[Labelled], fold_detectors: Sequence[Detector]
) -> dict[str, Detector]:
    """For each training volume the first of the detectors of folds that was trained without it.

    CanvasError where none was, or where they detect otherwise than the recipe: scores would not compare.
    """
    detection = recipe.detection
    for detector in fold_detectors:
        config = detector.config
        for name, value, expected in (
            ("min_distance_um", config.min_distance_um, detection.min_distance_um),
            ("smooth_um", config.smooth_um, detection.smooth_um),
            ("amplitude", config.amplitude, detection.amplitude),
            ("relative", config.relative, detection.relative),
            ("window", config.window_rule, recipe.data.window.rule),
        ):
            if value != expected:
                raise CanvasError(
                    f"the fold detector {detector.name} has {name} {value}, the recipe {expected}; give "
                    "detectors that the same recipe trained"
                )
    by_volume: dict[str, Detector] = {}
    for labelled in training if fold_detectors else ():
        name, crop_of = labelled.source.name, labelled.source.volume.crop_of
        seen = [volume_in_training(each.config.provenance, name, crop_of) for each in fold_detectors]
        without = [each for each, volume in zip(fold_detectors, seen, strict=True) if volume is None]
        if not without:
            raise CanvasError(
                f"every fold detector was trained on {name} (one of them on {seen[0]}); give one that was "
                "trained without it"
            )
        by_volume[name] = without[0]
    return by_volume


def f1_curve(recipe: DetectorRecipe, labelled: Labelled, candidates: Points) -> Float64[np.ndarray, " t"]:
    """F1 at every threshold of the grid."""
    if not len(candidates):
        return np.zeros(len(THRESHOLDS))
    curve = _score(recipe, labelled, candidates, None).curve
    return np.zeros(len(THRESHOLDS)) if curve is None else f1_on(curve, THRESHOLDS)


def _candidates(recipe: DetectorRecipe, detector: Detector, labelled: Labelled, gain: float) -> Points:
    """Maxima above the lowest threshold in the labelled boxes, at `gain` times the contrast.

    Relative scores are those of the whole volume, so there may be maxima outside the boxes too.
    """
    boxes, source = labelled.boxes, labelled.source
    margin = np.ceil(_tolerance_um(recipe, labelled) / np.asarray(source.volume.voxel_um)).astype(int)
    start = np.maximum(boxes[:, :3].min(axis=0) - margin, 0)
    stop = np.minimum(boxes[:, 3:].max(axis=0) + margin, source.volume.shape_zyx)
    region = np.concatenate([start, stop])
    if detector.config.relative is not None:
        um = source.volume.voxel_um
        region = reference_box(region, source.volume.shape_zyx, um, max(um), detector.config.relative)
    job = detector_job(
        detector,
        source.volume,
        background=labelled.background,
        threshold=LOWEST_THRESHOLD,
        box=region.tolist() if source.resample_to is None else None,
        resample=source.resample_to is not None,
        ignore_voxel_size=recipe.data.ignore_voxel_size,
        device=detector.device,
    )
    job.windows = [Window(low, low + (high - low) / gain) for low, high in job.windows]
    return run(job, show=False)


def _score(recipe: DetectorRecipe, labelled: Labelled, candidates: Points, threshold: float | None) -> Score:
    return evaluate(
        candidates,
        labelled.points_zyx,
        voxel_um=labelled.source.volume.voxel_um,
        tolerance_um=_tolerance_um(recipe, labelled),
        within=labelled.boxes,
        threshold=threshold,
        chance=False,
    )


def _row(
    recipe: DetectorRecipe, labelled: Labelled, held_out: bool, score: Score, threshold: float, step: int
) -> dict[str, Any]:
    best = (None, None) if score.curve is None or score.curve.best is None else score.curve.best
    counts = score.counts
    return {
        "kind": "eval",
        "step": step,
        "volume": labelled.source.name,
        "crops": "cells",
        "held_out": held_out,
        "cells": counts.tp + counts.fn,
        "tolerance_um": _tolerance_um(recipe, labelled),
        "threshold": threshold,
        "tp": counts.tp,
        "fp": counts.fp,
        "fn": counts.fn,
        "f1": counts.f1,
        "best_f1": best[1],
        "best_threshold": best[0],
        "average_precision": score.average_precision,
    }


def _tolerance_um(recipe: DetectorRecipe, labelled: Labelled) -> float:
    return recipe.tolerance_um(labelled.source.volume.marker)


def _config(recipe: DetectorRecipe, net: HeatMapNet, voxel_um: ZyxUm) -> DetectorConfig:
    return DetectorConfig(
        architecture=net.config,
        voxel_um=voxel_um,
        window_rule=recipe.data.window.rule,
        threshold=LOWEST_THRESHOLD,
        min_distance_um=recipe.detection.min_distance_um,
        smooth_um=recipe.detection.smooth_um,
        amplitude=recipe.detection.amplitude,
        relative=recipe.detection.relative,
        weights={},
        sha256="",
    )
