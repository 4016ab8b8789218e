"""Cells of an index: their columns by row, and rows by id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from canvas_fm.errors import CanvasError, counted
from canvas_fm.inference.search.index.index_store import Part, by_part


def describe(parts: list[Part], rows: Int64[np.ndarray, " r"]) -> list[dict[str, Any]]:
    """For each row: `row`, `id`, `brain`, `marker`, `z`, `y`, `x` and the point's columns."""
    out: list[dict[str, Any]] = [{"row": int(row)} for row in rows]
    for part, positions in by_part(parts, rows):
        names = ["id", "brain", "marker", "z", "y", "x"]
        names += [name for name in part.columns if name not in names]
        for name in names:
            for place, value in zip(positions, part.take(name, rows[positions] - part.first), strict=True):
                out[place][name] = value
    return out


def rows_of(parts: list[Part], ids: Sequence[str | int]) -> Int64[np.ndarray, " r"]:
    """Rows of cells by id: `17`, `BRAIN:17`, or `#17` for row 17 of the index.

    Raises CanvasError for one that is not there or ambiguous.
    """
    return np.array([_row_of(parts, str(each)) for each in ids], dtype=np.int64)


def _row_of(parts: list[Part], cell_id: str) -> int:
    if cell_id.startswith("#") and cell_id[1:].isascii() and cell_id[1:].isdigit():
        count = sum(part.rows for part in parts)
        if len(cell_id) > 12 or int(cell_id[1:]) >= count:
            raise CanvasError(f"the index has no row {cell_id[:80]!r}; its rows are #0 to #{count - 1}")
        return int(cell_id[1:])
    brain, colon, rest = cell_id.partition(":")
    rows = _rows_with(parts, cell_id)
    if not len(rows) and colon:
        same_id = _rows_with(parts, rest)
        rows = (
            same_id[[cell["brain"] == brain for cell in describe(parts, same_id)]]
            if len(same_id)
            else same_id
        )
    if not len(rows):
        raise CanvasError(f"the index has no cell with the id {cell_id[:80]!r}; `id` is a column of its hits")
    if len(rows) > 1:
        brains = sorted({str(cell["brain"]) for cell in describe(parts, rows[:100])})
        more = "write BRAIN:ID, or #ROW of the index"
        if len(brains) == 1:
            more = "write #ROW of the index, or give its points a column `id` without repeats"
        raise CanvasError(
            f"{counted(len(rows), 'cell')} of {', '.join(brains[:5])} have the id {cell_id[:80]!r}; {more}"
        )
    return int(rows[0])


def _rows_with(parts: list[Part], cell_id: str) -> Int64[np.ndarray, " r"]:
    rows = [np.empty(0, np.int64)]
    for part in parts:
        value: float | None
        if part.columns["id"] == "text":
            words = part.words("id")
            value = words.index(cell_id) if cell_id in words else None
        else:
            try:
                value = float(cell_id)
            except ValueError:
                value = None
        if value is not None:
            rows.append(part.first + np.flatnonzero(part.values("id") == value))
    return np.concatenate(rows)
