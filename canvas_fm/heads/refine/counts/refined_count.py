"""The count of a volume's detections, refined or not, and its warnings; `expected_count` has the interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Real

from canvas_fm.data.points.points import P_CELL, Points
from canvas_fm.files.shipped import shipped
from canvas_fm.heads.features.candidate_score import made_by
from canvas_fm.heads.refine.counts.candidate_recall import (
    DETECTIONS_PER_CELL,
    P_CELL_PER_CELL,
    measured_meta,
    recall_of,
    shipped_recalls,
    threshold_of,
)
from canvas_fm.heads.refine.counts.count_interval import (
    ALL_CELLS,
    ALL_CELLS_IF_RECALL_HOLDS,
    AMONG_CANDIDATES,
    Count,
    MeasuredCount,
    Recall,
    expected_count,
)
from canvas_fm.heads.refine.counts.measured_count import measured_count
from canvas_fm.inference.detect.out_of_distribution import UNLIKE, mark_unlike
from canvas_fm.inference.detect.tiles.tiled_detection import TiledDetection
from canvas_fm.models.folder.training_volumes import volume_in_training

if TYPE_CHECKING:  # detection counts too, and loads no fitting
    from canvas_fm.heads.refine.refiner import Refiner

# What a note says to run; `count` puts its own files there.
RECALL_COMMAND = "canvas-fm refine apply REFINER VOLUME CANDIDATES --out CELLS.csv --recall FOUND CELLS"
AUDIT_COMMAND = "canvas-fm audit VOLUME CELLS.csv --out AUDIT.csv"
_COUNT_LINES = ("count_of", "expected_cells", "expected_cells_90", "count_notes", "candidate_recall")
_UNLIKE = 0.5  # so little alike, the interval is mostly that of other volumes
_MUCH = 0.3  # an uncertainty of the log-odds that is worth a sentence


@dataclass(frozen=True)
class CellCount:
    """An expected count: of all `cells`, or of the cells among the `candidates` where recall is not known.

    `among_candidates` is the latter in either case; `notes` are sentences for whoever reads the number.
    `recall` is that of the candidates, or what counts of the same models were on held-out brains.
    `recall_holds` is False where the recall was measured on volumes that this one looks unlike.
    """

    of: Literal["cells", "candidates"]
    count: Count
    among_candidates: Count
    recall: Recall | MeasuredCount | None
    notes: tuple[str, ...]
    recall_holds: bool = True
    refined: bool = True

    @property
    def count_of(self) -> str:
        """Of what the count is, in words."""
        if self.of == "candidates":
            return AMONG_CANDIDATES
        return ALL_CELLS if self.recall_holds else ALL_CELLS_IF_RECALL_HOLDS

    def as_dict(self) -> dict[str, Any]:
        """The fields as `refine apply --json` prints them."""
        return {
            "count_of": self.count_of,
            "expected_cells": self.count.value,
            "interval_90": [self.count.low, self.count.high],
            "among_candidates": self.among_candidates._asdict(),
            "recall": self.recall._asdict() if isinstance(self.recall, Recall) else None,
            "measured": self.recall._asdict() if isinstance(self.recall, MeasuredCount) else None,
            "notes": list(self.notes),
        }

    def as_meta(self) -> dict[str, str]:
        """The fields as lines of a file's header."""
        count = self.count
        lines = {
            "count_of": self.count_of,
            "expected_cells": f"{count.value:.1f}",
            "expected_cells_90": f"{count.low:.1f} {count.high:.1f}",
        }
        if isinstance(self.recall, MeasuredCount):
            lines |= measured_meta(P_CELL_PER_CELL if self.refined else DETECTIONS_PER_CELL, self.recall)
        elif self.recall is not None:
            lines["candidate_recall"] = f"{self.recall.value:.4f}"
            lines["candidate_recall_spread"] = f"{self.recall.spread:.4f} {self.recall.brains}"
        return lines | ({"count_notes": "; ".join(self.notes)} if self.notes else {})


def count_refined(
    refiner: Refiner,
    points: Points,
    p_cell: Real[np.ndarray, " n"],
    *,
    recall: tuple[int, int] | None = None,
    volume: str | None = None,
    crop_of: str | None = None,
) -> CellCount:
    """The expected count of refined candidates.

    It is of all cells where counts of the same shipped detector and refiner were measured on held-out brains,
    or the recall of the candidates is known: by an audit, `recall` (found, looked for), which goes first,
    else for candidates of this detector and threshold as recorded with the refiner, or of a shipped
    detector. `volume` is the name of the volume, and `crop_of` of the one that it was cut from, to notice
    one that the refiner was trained on.
    """
    sha256 = str(getattr(refiner, "sha256_", ""))
    known: Recall | MeasuredCount | None = measured_count(points, p_cell, sha256)
    known = known or recall_of([*refiner.recalls_, *shipped_recalls()], points)
    if recall is not None:
        known = Recall.of([recall[0]], [recall[1]])
    among = expected_count(p_cell, refiner.count_spread_)
    if known is None:
        count = among
    else:
        count = expected_count(p_cell, refiner.count_spread_, known)
    unlike = points.meta.get(UNLIKE) if recall is None else None  # an audit is of this very volume
    measured = isinstance(known, MeasuredCount)  # what labels leave open is in it
    notes = [*([] if measured else _doubts(refiner)), *_seen(refiner, points, volume, crop_of)]
    if known is None:  # else what is not among the candidates is in the count
        notes = [*_cut(points), *notes]
        notes.append(
            "cells without a candidate are not counted, since it is not known how many there are; look for "
            f"some cells by eye and give how many of them have a candidate: `{RECALL_COMMAND}`"
        )
    elif unlike:
        notes = [_recall_may_not_hold(unlike), *notes]
    if isinstance(known, MeasuredCount):
        notes += _dissimilarity_notes(known)
    of: Literal["cells", "candidates"] = "candidates" if known is None else "cells"
    return CellCount(of, count, among, known, tuple(notes), recall_holds=not unlike)


def count_detected(
    points: Points, *, volume: str | None = None, crop_of: str | None = None
) -> CellCount | None:
    """The count of all cells by detections that were not refined: None where theirs was not measured.

    It is detections times the cells per detection on brains that the detector had not seen.
    """
    known = measured_count(points, None)
    if known is None:
        return None
    count = expected_count(np.ones(len(points)), None, known)
    unlike = points.meta.get(UNLIKE)
    notes = [
        *([] if unlike is None else [_recall_may_not_hold(unlike, AUDIT_COMMAND)]),
        *_training_overlap_notes(points, volume, crop_of),
        *_dissimilarity_notes(known),
    ]
    return CellCount("cells", count, count, known, tuple(notes), recall_holds=not unlike, refined=False)


def with_count(points: Points) -> Points:
    """Detections with the lines of their count in `meta`, where it was measured for their detector."""
    count = None if P_CELL in points.columns else count_detected(points)
    return points if count is None else Points(points.zyx, points.columns, points.meta | count.as_meta())


def mark_counted(job: TiledDetection, points: Points) -> Points:
    """The detections of a job with what makes its volume unlike the calibration's, and with their count."""
    return with_count(mark_unlike(job, points))


def without_count(meta: Mapping[str, str]) -> dict[str, str]:
    """Metadata of detections without the lines of a count."""
    per_cell = (P_CELL_PER_CELL, DETECTIONS_PER_CELL, "candidate_recall_spread")
    return {
        key: text for key, text in meta.items() if key not in _COUNT_LINES and not key.startswith(per_cell)
    }


def _dissimilarity_notes(known: MeasuredCount) -> list[str]:
    """A note where the interval is that of other volumes than the labelled brains of this stain."""
    if known.alike >= _UNLIKE:
        return []
    return [
        "how doubtful, how varied and how dense the detections are is not as on the labelled brains of the "
        f"count's record; the interval is as wide as on all {known.brains} volumes, synthetic ones among them"
    ]


def _recall_may_not_hold(unlike: str, command: str = RECALL_COMMAND) -> str:
    return (
        f"the volume looks unlike what the detector was calibrated on ({unlike}): whether its recall on the "
        "training brains holds here is not known, and the count may be far off; look for some cells by eye "
        f"and give how many of them have a candidate: `{command}`"
    )


def _cut(points: Points) -> list[str]:
    """A sentence for candidates of unknown recall that a detector cut at its own threshold."""
    threshold, own = threshold_of(points), _own_threshold(points)
    if threshold is None or own is None or threshold < own * 0.98:
        return []
    of = "the detector's own threshold" + (f" is {own:g}" if f"{own:g}" != f"{threshold:g}" else "")
    return [
        f"the candidates were cut at {threshold:g} ({of}): cells that score lower are not among them; detect "
        "with a lower --threshold for candidates to refine"
    ]


def _own_threshold(points: Points) -> float | None:
    """The operating threshold of the detector of candidates: as stated, else of the shipped detector."""
    stated = points.meta.get("operating_threshold")
    if stated is not None:
        return float(stated)
    from canvas_fm.models.folder.model_folder import read_kind

    for path in (shipped("model") | shipped("older model")).values():
        kind, config = read_kind(path)
        if kind == "detector" and config.get("sha256") == made_by(points):
            return float(config["threshold"])
    return None


def _doubts(refiner: Refiner) -> list[str]:
    """Sentences about what labels and split leave open."""
    open_, warning = refiner.count_spread_.log_odds, refiner.split_warning_
    notes = [] if warning is None else [f"the refiner was calibrated on {warning}"]
    if open_ >= _MUCH:
        notes.append(
            f"the refiner's calibration is uncertain by {open_:.2f} in log-odds (standard deviation), since "
            "its labels are few or of one brain; the interval includes this"
        )
    return notes


def _seen(refiner: Refiner, points: Points, volume: str | None, crop_of: str | None) -> list[str]:
    """Sentences where refiner or detector were trained on this volume, or on the one it is a crop of."""
    name = volume or points.meta.get("volume")
    notes = []
    if trained_on := volume_in_training(refiner.fit_provenance_, name, crop_of):
        notes.append(f"the refiner was trained on {trained_on}, and is applied to it here")
    return [*notes, *_training_overlap_notes(points, volume, crop_of)]


def _training_overlap_notes(points: Points, volume: str | None, crop_of: str | None) -> list[str]:
    """A note where the detector was trained on this volume, or on one that it is a crop of."""
    if points.meta.get("detector_trained_on_volume") != "yes":
        return []
    name = volume or points.meta.get("volume")
    itself = "" if crop_of is None else f", or on {crop_of!r}, of which it is a crop"
    return [f"the detector of the candidates was trained on the volume {name!r}{itself}"]
