"""An audit's table with its answers, read back and checked against the cells that it was drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from canvas_fm.data.points.points import Points
from canvas_fm.errors import BadInput, counted
from canvas_fm.heads.review.audit.estimate import Audit, StratifiedAnswers, estimate_audit
from canvas_fm.heads.review.audit.sample import ANSWER, BOX, DETECTION, DRAWN, KIND, SIZE, STRATUM

UNSURE = -1


def audit_of(table: Points, cells: Points | None = None, *, source: str | Path = "the audit") -> Audit:
    """Precision, recall and corrected count from an answered table of `draw_audit`.

    With `cells`, all detections have to be rows of theirs. An answer of -1 (unsure) is left out, and a note
    says what the count would be if all or none of these were cells. Raises BadInput for another table.
    """
    kind, stratum, size = _columns(table, (KIND, STRATUM, SIZE, ANSWER), source)
    answer = answers_of(table, source)
    is_detection = kind == DETECTION
    if cells is not None:
        _check_origin(table.zyx[is_detection], cells, source)
    unsure = is_detection & (answer == UNSURE)
    boxes = None
    if (~is_detection).any():
        boxes = StratifiedAnswers.of(stratum[~is_detection], size[~is_detection], answer[~is_detection])
    plain = np.where(unsure, np.nan, answer)
    notes: tuple[str, ...] = ()
    if unsure.any():
        ends = []
        for value in (0.0, 1.0):
            filled = np.where(unsure, value, answer)
            ends.append(
                estimate_audit(
                    StratifiedAnswers.of(stratum[is_detection], size[is_detection], filled[is_detection]),
                    boxes,
                )
            )
        low, high = ((estimate.cells or estimate.true).value for estimate in ends)
        what = "cells" if boxes is not None else "true detections"
        notes += (
            f"{counted(int(unsure.sum()), 'answer', 'are')} unsure and left out; if none of them "
            "is a cell there are "
            f"{low:,.0f} {what}, if all are {high:,.0f}",
        )
    blank = int(np.isnan(answer).sum())
    if blank:
        notes += (
            f"{blank} of {counted(len(answer), 'row')} have no answer yet; the others count, as they came",
        )
    detections = StratifiedAnswers.of(stratum[is_detection], size[is_detection], plain[is_detection])
    return estimate_audit(detections, boxes, unsure=int(unsure.sum()), notes=notes)


def check_audit(table: Points, cells: Points, source: str | Path) -> None:
    """Raise BadInput unless this is a table of `draw_audit` from these cells, answered or not."""
    kind = _columns(table, (KIND, STRATUM, SIZE, ANSWER), source)[0]
    answers_of(table, source)
    _check_origin(table.zyx[kind == DETECTION], cells, source)


def answers_of(table: Points, source: str | Path = "the audit") -> Float64[np.ndarray, " n"]:
    """Answers as numbers, NaN where there is none; BadInput for any other word, with its row."""
    values = table.columns[ANSWER]
    out = np.full(len(values), np.nan)
    for row, value in enumerate(values.tolist()):
        text = str(value).strip()
        if text in ("", "nan"):
            continue
        try:
            out[row] = float(text)
        except ValueError:
            out[row] = np.inf
        allowed: Sequence[float] = (0.0, 1.0, UNSURE)
        box = table.columns[KIND][row] == BOX
        if (box and (out[row] < 0 or not float(out[row]).is_integer())) or (
            not box and out[row] not in allowed
        ):
            expected = "the number of missed cells in a box" if box else "1 (a cell), 0 (none) or -1 (unsure)"
            raise BadInput(f"{source}, row {row + 1}: the answer is {text!r}; expected {expected}")
    return out


def _columns(
    table: Points, names: Sequence[str], source: str | Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise BadInput(
            f"{source} has no column {', '.join(missing)}; give a table that `canvas-fm audit --out` wrote, "
            "with its column answer filled"
        )
    kind, stratum, size = (table.columns[name] for name in names[:3])
    odd = [str(name) for name in np.unique(kind) if name not in (DETECTION, BOX)]
    if odd or stratum.dtype.kind not in "iu" or size.dtype.kind not in "iu":
        raise BadInput(f"{source} was changed beyond its column answer; draw the audit anew")
    drawn = table.columns.get(DRAWN, np.full(len(table), len(table)))  # earlier versions did not state it
    if set(drawn.tolist()) - {len(table)}:
        raise BadInput(
            f"{source} has {counted(len(table), 'row')}, of {drawn[0]} that were drawn: it was cut, or rows "
            "were deleted; bring them back, or draw the audit anew. Rows without an answer stay, with answer "
            "blank"
        )
    return kind, stratum.astype(np.int64), size.astype(np.int64)


def _check_origin(zyx: np.ndarray, cells: Points, source: str | Path) -> None:
    known = {tuple(row) for row in np.round(cells.zyx, 3).tolist()}
    strange = sum(tuple(row) not in known for row in np.round(zyx, 3).tolist())
    if strange:
        raise BadInput(
            f"{strange} of {counted(len(zyx), 'detection')} of {source} are not among these "
            "cells; give the cells "
            "that the audit was drawn from"
        )
