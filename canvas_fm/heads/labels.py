"""Which candidates are cells: by a column of theirs, or by one-to-one matching with true cells."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from canvas_fm.data.boxes import box_of, inside_boxes
from canvas_fm.data.points import Points
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import BadInput, CanvasError
from canvas_fm.evaluation.checks import cells_of
from canvas_fm.evaluation.matching import match

_log = logging.getLogger(__name__)
CELL, OTHER, SKIP = 1, 0, -1


@dataclass(frozen=True)
class Labelled:
    """Labels of the candidates of one brain: 1 a cell, 0 none, −1 to be skipped.

    `region` is the number of the box that holds each (None without boxes), `missed` the true cells without a
    candidate (None where the truth is not known), `repeated` how many rows repeat the position of another.
    """

    label: Int64[np.ndarray, " n"]
    region: np.ndarray | None
    missed: int | None
    repeated: int

    def as_dict(self) -> dict[str, Any]:
        """Counts, and the recall of the candidates: no refiner can reach more."""
        cells = int((self.label == CELL).sum())
        known = self.missed is not None and cells + (self.missed or 0)
        return {
            "candidates": len(self.label),
            "cells": cells,
            "others": int((self.label == OTHER).sum()),
            "skipped": int((self.label == SKIP).sum()),
            "missed": self.missed,
            "recall": cells / (cells + (self.missed or 0)) if known else None,
            "duplicates": self.repeated,
        }


def label_candidates(
    points: Points,
    *,
    name: str,
    column: str | None = None,
    truth: Points | None = None,
    tolerance_um: float | None = None,
    voxel_um: ZyxUm | None = None,
    boxes: Int64[np.ndarray, "k 6"] | None = None,
) -> Labelled:
    """Labels by a `column` of 1, 0 and −1, else by matching with `truth` within `tolerance_um`.

    Matched one to one, the closest pair first, a candidate is a cell, else none: of two on one cell the
    farther is none. What lies outside `boxes` is skipped. With a column, `truth` only says what is missed.
    """
    if column is not None:
        label = _column(points, column, name)
    elif truth is None or tolerance_um is None or voxel_um is None:
        raise BadInput(f"{name}: give labels, or the true cells with a tolerance in µm")
    else:
        label = np.full(len(points), OTHER, np.int64)
    true = None if truth is None else cells_of(truth, "truth")[0]
    if column is None and true is not None and tolerance_um is not None and voxel_um is not None:
        label[match(points.zyx, true.zyx, tolerance=tolerance_um, scale_zyx=voxel_um).pred_index] = CELL
    region = None
    if boxes is not None:
        region = box_of(points.zyx, boxes)
        label = np.where(region >= 0, label, SKIP)
    missed = None
    if true is not None:
        scored = len(true) if boxes is None else int(inside_boxes(true.zyx, boxes).sum())
        missed = max(scored - int((label == CELL).sum()), 0)
    repeated = duplicates(points)
    if repeated:
        _log.warning("%s: %d of %d candidates repeat the position of another; they are kept", name, repeated,
                     len(points))  # fmt: skip
    return Labelled(label, region, missed, repeated)


def duplicates(points: Points) -> int:
    """Rows that repeat the position of an earlier one."""
    return len(points) - len(np.unique(points.zyx, axis=0))


def check_home(points: Points, volume_name: str, what: str) -> None:
    """Raise CanvasError where the header of points names another volume than the one they are used on."""
    stated = points.meta.get("volume")
    if stated is not None and stated != volume_name:
        raise CanvasError(
            f"{what} says that its points are of the volume {stated!r}; this one is {volume_name!r}: give "
            f"that volume, or take the line '# volume: {stated}' out of the file if it is the same renamed"
        )


def _column(points: Points, column: str, name: str) -> Int64[np.ndarray, " n"]:
    values = points.columns.get(column)
    if values is None:
        found = ", ".join(points.columns) or "none"
        raise BadInput(f"{name}: the candidates have no column {column!r}; they have {found}")
    if values.dtype.kind not in "iufb" or not np.isin(values, (CELL, OTHER, SKIP)).all():
        odd = next(value for value in values.tolist() if value not in (CELL, OTHER, SKIP))
        raise BadInput(f"{name}: column {column!r} holds {odd!r}; expected 1 (a cell), 0 (none) or -1 (skip)")
    return values.astype(np.int64)
