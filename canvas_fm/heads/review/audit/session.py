"""An audit answered on the review's page: its rows in their order, boxes searched for missed cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from canvas_fm.data.points.boxes import inside_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.errors import BadInput
from canvas_fm.heads.review.audit.answers import audit_of, check_audit
from canvas_fm.heads.review.audit.sample import ANSWER, BOX, CORNERS, KIND
from canvas_fm.heads.review.review_state import OPEN
from canvas_fm.heads.review.session import ReviewSession


class AuditSession(ReviewSession):
    """The rows of a table of `draw_audit`; `write` fills its column `answer`, and keeps what was filled."""

    def __init__(self, table: Points, cells: Points, out: str | Path) -> None:
        check_audit(table, cells, out)
        self._cells = cells
        super().__init__(table, out, ("auditor",), order="random")
        self.permutation = np.arange(len(table))

    @property
    def detections_zyx(self) -> Float64[np.ndarray, "n 3"]:
        """All detections, not only those of the sample."""
        return self._cells.zyx

    def box_of(self, row: int) -> list[int] | None:
        """Corners of a row that is a box."""
        columns = self.candidates.columns
        if columns[KIND][row] != BOX:
            return None
        return [int(float(columns[name][row])) for name in CORNERS]

    def filled(self) -> Points:
        """The table with answers: labels of detections, numbers of missed cells of searched boxes."""
        label = self.answers()
        missed = np.array([cell.zyx for cell in list(self.clicks.missed.values())]).reshape(-1, 3)
        answer = [str(value) for value in self.candidates.columns[ANSWER].tolist()]
        for row in np.flatnonzero(label > OPEN).tolist():
            box = self.box_of(row)
            answer[row] = str(int(label[row]))
            if box is not None:
                answer[row] = str(int(inside_boxes(missed, np.array([box])).sum()))
        columns = self.candidates.columns | {
            ANSWER: np.array(["" if text == "nan" else text for text in answer])
        }
        return Points(self.candidates.zyx, columns, self.candidates.meta)

    def progress(self, by: str) -> dict[str, Any]:
        """As of a review, with the estimates so far in place of the count."""
        shown = super().progress(by) | {"count": None, "stop": ""}
        try:
            audit = audit_of(self.filled())
        except BadInput:
            return shown
        shown["stop"] = "precision {:.2f} ({:.2f} to {:.2f})".format(*audit.precision)
        if audit.cells is not None:
            shown["count"] = list(audit.cells)
            shown["stop"] += "; {:,.0f} cells ({:,.0f} to {:,.0f})".format(*audit.cells)
        return shown

    def write(self) -> None:
        self.filled().write(self.out)

    def _ranked(self, order: Any, by: str) -> Int64[np.ndarray, " n"]:
        return self.permutation
