"""Recall of candidates on held-out brains, recorded with a refiner by detector and threshold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from canvas_fm.data.points.points import Points
from canvas_fm.errors import BadInput
from canvas_fm.files.option_sets import FrozenModel
from canvas_fm.files.shipped import RECALLS
from canvas_fm.heads.features.candidate_score import made_by
from canvas_fm.heads.labels.candidates import CELL, Candidates
from canvas_fm.heads.refine.counts.count_interval import MeasuredCount, Recall
from canvas_fm.models.folder.training_volumes import volume_in_training

# Deviation of log recall between brains where one brain alone is known. From brain to brain it is .02 on
# microglia cubes, .21 on phantoms of somata, .90 on those of nuclei (recipes/LOG.md).
ONE_BRAIN_SPREAD = 0.2
P_CELL_PER_CELL, DETECTIONS_PER_CELL = "p_cell_per_cell", "detections_per_cell"
_SAME = 0.02  # thresholds that differ by less, relatively, cut the same candidates


class CandidateRecall(FrozenModel):
    """Recall of a detector's candidates at one threshold: cells with a candidate, and all, by held-out brain.

    `made_by` is the detector's sha256, for a Laplacian of a Gaussian its description.
    """

    made_by: str
    threshold: float | None
    found: dict[str, int]
    cells: dict[str, int]

    @property
    def recall(self) -> Recall:
        """Recall on a brain that is none of these."""
        return recall_on_new_brain([self.found[name] for name in self.cells], list(self.cells.values()))


def recall_on_new_brain(detected: Sequence[int], cells: Sequence[int]) -> Recall:
    """Recall on a brain that is none of those in which `found` of `cells` had a candidate.

    One brain says nothing of how brains differ: then `ONE_BRAIN_SPREAD` is added.
    """
    known = Recall.of(detected, cells)
    if known.brains > 1:
        return known
    return known._replace(spread=float(np.hypot(known.spread, ONE_BRAIN_SPREAD)))


def threshold_of(points: Points) -> float | None:
    """The threshold at which candidates were cut, where their file states it."""
    try:
        return float(points.meta["threshold"])
    except (KeyError, ValueError):
        return None


def recall_of_refined(
    points: Points, records: Sequence[CandidateRecall] = ()
) -> Recall | MeasuredCount | None:
    """The measured count or recall that refined candidates state, else the recall of `records` or as shipped.

    None where only the cells among them were kept: then their sum is of these alone.
    """
    if points.meta.get("cells_only") == "yes":
        return None
    if (measured := stated_count(points, P_CELL_PER_CELL)) is not None:
        return measured
    try:
        spread, brains = points.meta["candidate_recall_spread"].split()
        return Recall(float(points.meta["candidate_recall"]), float(spread), int(brains))
    except (KeyError, ValueError):
        return recall_of([*records, *shipped_recalls()], points)


def stated_count(points: Points, name: str) -> MeasuredCount | None:
    """The measured count that a file states by `P_CELL_PER_CELL`, or by `DETECTIONS_PER_CELL`."""
    meta = points.meta
    try:
        spread, brains = meta[f"{name}_spread"].split()
        known = MeasuredCount(float(meta[name]), float(spread), int(brains))
        if (parts := meta.get(f"{name}_parts")) is not None:  # earlier versions wrote none
            per_cell, between = (float(part) for part in parts.split())
            known = known._replace(per_cell=per_cell, between=between, whole=float(meta["expected_cells"]))
        return known
    except (KeyError, ValueError):
        return None


def measured_meta(name: str, known: MeasuredCount) -> dict[str, str]:
    """The lines of a file's header that `stated_count` reads."""
    lines = {name: f"{known.value:.6g}", f"{name}_spread": f"{known.spread:.4f} {known.brains}"}
    if known.per_cell is not None:
        lines[f"{name}_parts"] = f"{known.per_cell:.6g} {known.between:.6g}"
    return lines


def training_recalls(
    brains: Sequence[Candidates], detector: Mapping[str, Any] | None = None
) -> list[CandidateRecall]:
    """Recalls of the candidates that a refiner is fitted on, where all true cells are known.

    Brains that the detector of the candidates was trained on, by the candidates' own header or by the
    provenance `detector`, or that share tissue with such a one, say too much and are left out.
    """
    records: dict[tuple[str, float | None], CandidateRecall] = {}
    for brain in brains:
        key = made_by(brain.points), threshold_of(brain.points)
        detected, missed = int((brain.label == CELL).sum()), brain.missed
        if not key[0] or missed is None or not detected + missed or _seen(brain, detector or {}):
            continue
        known = records.get(key) or CandidateRecall(made_by=key[0], threshold=key[1], found={}, cells={})
        records[key] = known.model_copy(
            update={
                "found": {**known.found, brain.name: detected},
                "cells": {**known.cells, brain.name: detected + missed},
            }
        )
    return list(records.values())


def _seen(brain: Candidates, detector: Mapping[str, Any]) -> bool:
    stated = brain.points.meta.get("detector_trained_on_volume") == "yes"
    return stated or volume_in_training(detector, brain.name, brain.volume.crop_of) is not None


def read_recalls(path: str | Path) -> list[CandidateRecall]:
    """Recalls from a JSON file, a list of objects with made_by, threshold, found and cells by brain."""
    try:
        listed = json.loads(Path(path).read_bytes())
        return [CandidateRecall.model_validate(record) for record in listed]
    except (ValueError, TypeError, ValidationError) as problem:
        raise BadInput(
            f"{path} holds no recalls ({str(problem).splitlines()[0]}); give a JSON list of objects with "
            'made_by, threshold, and found and cells by brain, such as {"made_by": SHA256, "threshold": 0.2, '
            '"found": {"brain": 95}, "cells": {"brain": 100}}'
        ) from problem


def shipped_recalls() -> list[CandidateRecall]:
    """Recalls of the shipped detectors at their own thresholds, on brains that they were not trained on.

    Figures of folds: of models trained by the same recipe without the brain.
    """
    return read_recalls(RECALLS)


def recall_of(records: Sequence[CandidateRecall], points: Points) -> Recall | None:
    """The recorded recall of candidates made and cut like these; None where none was recorded."""
    maker, threshold = made_by(points), threshold_of(points)
    for record in records:
        if maker and record.made_by == maker and same_threshold(record.threshold, threshold):
            return record.recall
    return None


def same_threshold(recorded: float | None, threshold: float | None) -> bool:
    """Whether two thresholds cut the same candidates, as far as counts go."""
    if recorded is None or threshold is None:
        return recorded == threshold
    return abs(recorded - threshold) <= _SAME * recorded
