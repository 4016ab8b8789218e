"""Adapting a detector to a new brain by a few labelled cells, as much as cross-validation supports."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.boxes import as_boxes, check_boxes_inside, read_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import match_voxel_um
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.plausibility_checks import cells_of
from canvas_fm.files.option_sets import takes
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.folder.training_volumes import training_volumes
from canvas_fm.models.load_model import Detector, save_detector
from canvas_fm.progress import Advance, bar
from canvas_fm.training.detector.adapt.adapt_flags import AdaptOptions
from canvas_fm.training.detector.adapt.amplitude import FEWEST_CELLS, amplitude_detector
from canvas_fm.training.detector.adapt.candidates import candidates_in_boxes
from canvas_fm.training.detector.adapt.fine_tune import fine_tune, fine_tune_recipe
from canvas_fm.training.detector.adapt.label_folds import Counts, LabelFolds
from canvas_fm.training.detector.adapt.record import provenance_of_adaptation, sentence_of
from canvas_fm.training.detector.adapt.self_training import (
    STUDENTS,
    Teacher,
    average,
    student_of,
    students,
    unlabelled_boxes,
)
from canvas_fm.training.detector.adapt.strategies import (
    Strategy,
    StrategyScore,
    choose_strategy,
    score_strategies,
)
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.mae.training_crops import VolumeSource

_log = logging.getLogger(__name__)

_TRAINED: dict[str, tuple[Strategy, ...]] = {
    "none": (), "self": ("self-training",), "last": ("last layers",), "all": ("last layers", "all layers")
}  # fmt: skip


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

    `boxes` (rows z0, y0, x0, z1, y1, x1 or their file) are where all cells are labelled; outside them no
    label counts. Three ways are tried: another threshold, blob amplitude in the score too (from 15 cells on),
    all layers trained on the labels and on pseudo-labels of the unlabelled volume; with `layers="all"` in
    place of the last the last layers, and all layers, trained on the labels. Each is scored on spatial folds
    of the labels that it was not fitted on. `choose_strategy` takes one or none; with none, weights and
    threshold stay as they were, which `sentence` says. The same seed gives the same detector on one machine.
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
    steps = 2 + (STUDENTS if trained == ("self-training",) else folds.count * len(trained))
    with bar("adapting", steps, unit="steps", show=show) as advance:
        candidates = candidates_in_boxes(detector, labelled, tolerance_um, ignore)
        advance(1, "unadapted")
        counts_by_way: dict[Strategy, Counts] = {"threshold": folds.counts(candidates)}
        enough = len(labelled.inner_zyx) >= FEWEST_CELLS
        with_amplitude = amplitude_detector(detector, labelled) if enough else None
        if with_amplitude is not None:
            by_amplitude = candidates_in_boxes(with_amplitude, labelled, tolerance_um, ignore)
            counts_by_way["amplitude"] = folds.counts(by_amplitude)
        nets: list[HeatMapNet] = []
        chosen_by: dict[Strategy, Counts] = {}
        if opts.layers == "self":
            scores = score_strategies(counts_by_way, folds, detector.config.threshold, opts.seed)
            by = max(scores[1:], key=lambda score: score.f1).way
            teacher = with_amplitude if by == "amplitude" and with_amplitude is not None else detector
            nets, held_out, every = _students(
                detector, teacher, counts_by_way[by], folds, opts, advance, ignore
            )
            counts_by_way["self-training"], chosen_by["self-training"] = held_out, every
        for way in () if opts.layers == "self" else trained:
            counts_by_way[way] = _held_out_counts(detector, folds, way, opts, advance, ignore)
        scores = score_strategies(
            counts_by_way, folds, detector.config.threshold, opts.seed, chosen_by=chosen_by
        )
        phantoms_alone = not training_volumes(detector.config.provenance)
        best, chosen = choose_strategy(scores, len(labelled.inner_zyx), phantoms_alone=phantoms_alone)
        adapted = detector
        if chosen.way == "amplitude" and with_amplitude is not None:
            adapted, candidates = with_amplitude, by_amplitude
        if chosen.way in trained:
            adapted = (
                student_of(detector, average(nets))
                if chosen.way == "self-training"
                else _tuned(detector, labelled, chosen.way, opts)
            )
            candidates = candidates_in_boxes(adapted, labelled, tolerance_um, ignore)
        advance(1, chosen.way)
    sentence = sentence_of(chosen, best, scores[0], len(labelled.inner_zyx), detector.name)
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
        provenance=provenance_of_adaptation(detector, folds, candidates, scores, chosen, opts),
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
    check_boxes_inside(boxes_zyx, opened.shape_zyx, opened.path)
    to_um = match_voxel_um(
        opened, detector.config.voxel_um, resample=opts.resample, ignore_voxel_size=opts.ignore_voxel_size
    )
    return Labelled(VolumeSource(opened.name, opened, to_um), cells.zyx, boxes_zyx)


def _students(
    detector: Detector,
    teacher: Detector,
    counts: Counts,
    folds: LabelFolds,
    opts: AdaptOptions,
    advance: Advance,
    ignore: bool,
) -> tuple[list[HeatMapNet], Counts, Counts]:
    """The students of a self-training; counts in every block by the one that saw no label of it, and by all.

    The average of the students has seen all labels and is better than the one that saw none of a block: by
    that one's counts alone the threshold comes out wrong more often.
    """
    labelled, tolerance_um = folds.labelled, folds.tolerance_um
    halves = LabelFolds.of(labelled, tolerance_um, STUDENTS)
    boxes = unlabelled_boxes(labelled, opts.seed)
    seen = candidates_in_boxes(teacher, replace(labelled, boxes=boxes), tolerance_um, ignore)
    taught = Teacher(seen, boxes, counts)
    nets, held_out, every = [], np.zeros_like(counts), np.zeros_like(counts)
    for number, net in students(detector, halves, taught, opts.steps, opts.seed):
        nets.append(net)
        candidates = candidates_in_boxes(student_of(detector, net), labelled, tolerance_um, ignore)
        here = halves.counts(candidates)
        every += here
        held_out += here * (halves.fold == number)[None, :, None]
        advance(1, f"self-training, part {number + 1} of {halves.count}")
    return nets, held_out, every


def _held_out_counts(
    detector: Detector, folds: LabelFolds, way: Strategy, opts: AdaptOptions, advance: Advance, ignore: bool
) -> Counts:
    """Counts in every block by a net that was trained on the blocks of the other folds."""
    parts = []
    for number in range(folds.count):
        others = replace(folds.labelled, boxes=folds.blocks[folds.fold != number])
        tuned = _tuned(detector, others, way, opts)
        held_out = replace(folds.labelled, boxes=folds.blocks[folds.fold == number])
        counts = folds.counts(candidates_in_boxes(tuned, held_out, folds.tolerance_um, ignore))
        parts.append(counts * (folds.fold == number)[None, :, None])
        advance(1, f"{way}, part {number + 1} of {folds.count}")
    return np.sum(parts, axis=0)


def _tuned(detector: Detector, labelled: Labelled, way: Strategy, opts: AdaptOptions) -> Detector:
    recipe = fine_tune_recipe(detector, labelled, opts.steps, opts.seed)
    net = fine_tune(detector, labelled, recipe, last=way == "last layers")
    return Detector(detector.config, net)
