"""Detections with P(cell) of held-out domains, and the records of their counts beside the true cells."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy.optimize import nnls

from canvas_fm.data.points.boxes import box_of, inside_boxes
from canvas_fm.data.points.points import P_CELL, Points
from canvas_fm.heads.refine.counts.detection_statistics import detection_stats
from canvas_fm.heads.refine.counts.measured_count import NOT_REFINED, CountRecord, HeldOut, PartError
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.load_model import Detector
from canvas_fm.pipeline.detect_refined import detect_refined
from canvas_fm.pipeline.domain_volumes import Domain

FOLDS = Path(__file__).parents[3] / "recipes" / "domains" / "microglia.json"
_LEARN = 5  # cells of a domain, or of a part of it, that goes into a record
_FEW = 20
_GAP = 0.1  # so small a share of the expected cells in a labelled brain's part is a gap in the labels


@dataclass(frozen=True)
class Brain:
    """Detections of a domain with P(cell), its true cells, and the parts in which both are counted.

    `threshold` is that of the model that had not seen it.
    """

    name: str
    group: str
    points: Points
    cells_zyx: np.ndarray
    boxes: np.ndarray
    threshold: float

    @classmethod
    def of(
        cls, domain: Domain, detector: Detector, threshold: float, refiner: Refiner, cache: Path | None
    ) -> Brain:
        path = None if cache is None else cache / f"{domain.name.replace(' ', '_')}.npz"
        if path is None or not path.is_file():
            volume, cells, boxes, _ = domain.open()
            um = detector.config.voxel_um
            other = any(abs(a - b) > 0.05 * b for a, b in zip(volume.voxel_um, um, strict=True))
            with tempfile.TemporaryDirectory() as folder:
                points = detect_refined(detector, volume, refiner, Path(folder) / "cells.csv", device="cpu",
                                        threshold=threshold, resample=other, show=False)  # fmt: skip
            kept = {"zyx": points.zyx, "score": points.columns["score"], "p": points.columns[P_CELL],
                    "cells": cells, "boxes": boxes, "um": np.array(volume.voxel_um)}  # fmt: skip
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(path, **kept)
        else:
            with np.load(path) as arrays:
                kept = dict(arrays)
        keep = kept["score"] >= np.float32(threshold)
        columns = {"score": kept["score"][keep], P_CELL: kept["p"][keep]}
        meta = {"voxel_um": " ".join(f"{um:g}" for um in kept["um"])}
        points = Points(kept["zyx"][keep], columns, meta)
        return cls(domain.name, domain.group, points, kept["cells"], kept["boxes"], threshold)

    @property
    def parts(self) -> np.ndarray:
        """Labelled boxes, or of one box its octants."""
        if len(self.boxes) > 1:
            return self.boxes
        low, high = self.boxes[0, :3], self.boxes[0, 3:]
        middle = (low + high) // 2
        upper = np.stack(np.unravel_index(np.arange(8), (2, 2, 2)), axis=1).astype(bool)
        return np.concatenate([np.where(upper, middle, low), np.where(upper, high, middle)], axis=1)

    @cached_property
    def held_out(self) -> HeldOut:
        detections = int(inside_boxes(self.points.zyx, self.boxes).sum())
        cells = int(inside_boxes(self.cells_zyx, self.boxes).sum())
        stats = detection_stats(self.points, self.threshold)
        return HeldOut(detections, cells, stats._make(round(value, 4) for value in stats))

    @cached_property
    def by_detections(self) -> Float64[np.ndarray, "k 2"]:
        """Cells of each part, and how many there were if there were as many to each detection."""
        return self._of_parts(np.ones(len(self.points)))

    @cached_property
    def by_p_cell(self) -> Float64[np.ndarray, "k 2"]:
        """Cells of each part, and how many there were if P(cell) were off alike in all."""
        return self._of_parts(self.points.columns[P_CELL].astype(float))

    def _of_parts(self, weight: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "k 2"]:
        parts = self.parts
        of_point, of_cell = box_of(self.points.zyx, parts), box_of(self.cells_zyx, parts)
        cells = np.bincount(of_cell[of_cell >= 0], minlength=len(parts)).astype(float)
        expected = np.bincount(of_point[of_point >= 0], weight[of_point >= 0], len(parts))
        return np.stack([cells, expected * cells.sum() / max(expected.sum(), 1e-9)], axis=1)


def record_of(
    brains: Sequence[Brain], others: Sequence[Brain], detector: Detector, refiners: tuple[str, ...]
) -> CountRecord:
    """The record of a detector from brains and other volumes that it had not seen."""
    refined = refiners != (NOT_REFINED,)
    known = [brain for brain in brains if len(brain.cells_zyx) >= _LEARN]
    more = [brain for brain in others if len(brain.cells_zyx) >= _LEARN]
    of_others = part_error([*known, *more], refined)
    return CountRecord(
        made_by=detector.sha256, threshold=detector.config.threshold, refiners=refiners,
        brains={brain.name: brain.held_out for brain in known},
        others={brain.name: brain.held_out for brain in more},
        parts=part_error(known, refined, of_others) if known else of_others, parts_of_others=of_others,
    )  # fmt: skip


def part_error(brains: Sequence[Brain], refined: bool, else_: PartError | None = None) -> PartError:
    """How far parts are from their whole: (cells − expected)² = per_cell u² expected + between expected².

    Of few parts `per_cell` is that of `else_`.
    """
    rows = []
    for brain in brains:
        doubtful = brain.held_out.stats.doubtful
        for cells, expected in brain.by_p_cell if refined else brain.by_detections:
            gap = not brain.name.startswith("phantom ") and cells < _GAP * expected
            if expected >= _LEARN and not gap:
                rows.append((cells, expected, doubtful))
    cells, expected, doubtful = np.array(rows).T
    weight = 1 / (expected + 0.05 * expected**2)
    terms = np.stack([doubtful**2 * expected, expected**2], axis=1) * weight[:, None]
    errors = (cells - expected) ** 2 * weight
    if len(rows) < _FEW:  # large parts alone do not tell counting noise
        assert else_ is not None
        between = max(
            float(terms[:, 1] @ (errors - else_.per_cell * terms[:, 0])) / float(terms[:, 1] @ terms[:, 1]),
            0.0,
        )
        return PartError(else_.per_cell, round(between, 5))
    per_cell, between = nnls(terms, errors)[0]
    return PartError(round(float(per_cell), 4), round(float(between), 5))


def fold_of(domain: Domain, folds: Sequence[Detector]) -> tuple[Detector, float]:
    """The first fold's detector that has not seen a domain, and its threshold chosen without it."""
    scored = json.loads(FOLDS.read_bytes())["methods"]["detector-microglia-folds"]["domains"]
    for fold in folds:
        if domain.name not in {volume["name"] for volume in fold.config.provenance["trained_on"]}:
            row = scored.get(domain.name)
            return fold, 0.12 if row is None else float(row["threshold"])
    raise ValueError(f"all folds were trained on {domain.name}")
