"""The cells behind the rows of an index: what is known of each, and the row of a cell by its id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from canvas_fm.errors import CanvasError
from canvas_fm.inference.search.index_store import Part, by_part


def describe(parts: list[Part], rows: Int64[np.ndarray, " r"]) -> list[dict[str, Any]]:
    """For each row: `row`, `id`, `brain`, `marker`, `z`, `y`, `x` and what its point carried."""
    out: list[dict[str, Any]] = [{"row": int(row)} for row in rows]
    for part, mine in by_part(parts, rows):
        names = ["id", "brain", "marker", "z", "y", "x"]
        names += [name for name in part.columns if name not in names]
        for name in names:
            for place, value in zip(mine, part.take(name, rows[mine] - part.first), strict=True):
                out[place][name] = value
    return out


def rows_of(parts: list[Part], ids: Sequence[str | int]) -> Int64[np.ndarray, " r"]:
    """The rows of cells by id: `17`, or `BRAIN:17`, or `#17` for row 17 of the index itself.

    Raises CanvasError for one that is not there or ambiguous.
    """
    return np.array([_row_of(parts, str(each)) for each in ids], dtype=np.int64)


def _row_of(parts: list[Part], wanted: str) -> int:
    if wanted.startswith("#") and wanted[1:].isascii() and wanted[1:].isdigit():
        count = sum(part.rows for part in parts)
        if len(wanted) > 12 or int(wanted[1:]) >= count:
            raise CanvasError(f"the index has no row {wanted[:80]!r}; its rows are #0 to #{count - 1}")
        return int(wanted[1:])
    brain, colon, rest = wanted.partition(":")
    found = _rows_with(parts, wanted)
    if not len(found) and colon:
        same = _rows_with(parts, rest)
        found = same[[cell["brain"] == brain for cell in describe(parts, same)]] if len(same) else same
    if not len(found):
        raise CanvasError(f"the index has no cell with the id {wanted[:80]!r}; `id` is a column of its hits")
    if len(found) > 1:
        brains = sorted({str(cell["brain"]) for cell in describe(parts, found[:100])})
        more = "write BRAIN:ID, or #ROW of the index"
        if len(brains) == 1:
            more = "write #ROW of the index, or give its points a column `id` without repeats"
        raise CanvasError(
            f"{len(found)} cells of {', '.join(brains[:5])} have the id {wanted[:80]!r}; {more}"
        )
    return int(found[0])


def _rows_with(parts: list[Part], wanted: str) -> Int64[np.ndarray, " r"]:
    found = [np.empty(0, np.int64)]
    for part in parts:
        value: float | None
        if part.columns["id"] == "text":
            words = part.words("id")
            value = words.index(wanted) if wanted in words else None
        else:
            try:
                value = float(wanted)
            except ValueError:
                value = None
        if value is not None:
            found.append(part.first + np.flatnonzero(part.values("id") == value))
    return np.concatenate(found)
