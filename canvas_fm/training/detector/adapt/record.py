"""Summary of an adaptation: the printed sentence, and the record in the detector's config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from canvas_fm.data.points.boxes import box_of
from canvas_fm.data.points.points import Points
from canvas_fm.errors import counted
from canvas_fm.inference.detect.out_of_distribution import LOOKS, statistics_ranges, volume_statistics
from canvas_fm.models.load_model import Detector
from canvas_fm.training.detector.adapt.adapt_flags import AdaptOptions
from canvas_fm.training.detector.adapt.candidates import voxels_of
from canvas_fm.training.detector.adapt.label_folds import LabelFolds
from canvas_fm.training.detector.adapt.strategies import StrategyScore
from canvas_fm.version import __version__


def sentence_of(
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


def provenance_of_adaptation(
    detector: Detector,
    folds: LabelFolds,
    candidates: Points,
    scores: Sequence[StrategyScore],
    chosen: StrategyScore,
    opts: AdaptOptions,
) -> dict[str, Any]:
    """Provenance in the detector's config: start, labels, scores of the strategies."""
    labelled, before = folds.labelled, detector.config.provenance
    volume, boxes = labelled.source.volume, labelled.boxes
    mm3 = voxels_of(boxes) * float(np.prod(volume.voxel_um)) * 1e-9
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
