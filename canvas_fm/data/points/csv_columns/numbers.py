"""Localised numbers in tables: decimal commas and thousands separators."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from canvas_fm.data.points.coordinate_columns import axis_of, is_napari_axis
from canvas_fm.data.points.csv_columns.header import Header
from canvas_fm.errors import CanvasError

_log = logging.getLogger(__name__)
_GROUPED = {",": re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+"), ".": re.compile(r"[-+]?[1-9]\d{0,2}(\.\d{3})+")}
_WHOLE = re.compile(r"[-+]?\d{1,3}")


def refuse_thousands(path: Path, header: Header, text: str) -> None:
    """Raise CanvasError where coordinates of the first rows hold separators of thousands, not decimals.

    Excel writes 1,234 for 1234 where a cell is formatted so, in German 1.234. Only rows of semicolons and
    tabs are looked at, whose numbers may have a decimal comma. Where nothing tells, a warning says what is
    read.
    """
    if header.delimiter not in ";\t" or not re.search(r"\d[.,]\d{3}(?!\d)", text):
        return
    rows = list(csv.reader(text.splitlines(), delimiter=header.delimiter))
    columns = [[row[at].strip() for row in rows if at < len(row)] for at in range(len(header.names))]
    decimal_comma = any(re.fullmatch(r"[-+]?(\d+,\d{1,2}|\d+,\d{4,}|0,\d+)", text) for text in _all(columns))
    doubtful = None
    for name, texts in zip(header.names, columns, strict=True):
        if axis_of(name) is None and not is_napari_axis(name):
            continue
        for mark in ",.":
            marked = [text for text in texts if mark in text]
            if not marked or not all(map(_GROUPED[mark].fullmatch, marked)):
                continue
            plain = next((text for text in texts if _WHOLE.fullmatch(text)), None)
            if decimal_comma and mark == ".":
                raise _thousands(path, name, marked[0], "beside decimal commas")
            # Excel leaves out zeros at a number's end: of decimals hardly all have three digits, or none.
            if plain is not None and not decimal_comma and (mark == "," or header.delimiter == ";"):
                raise _thousands(path, name, marked[0], f"beside {plain}")
            if mark == "," and not decimal_comma:
                doubtful = (name, marked[0])
    if doubtful is not None:
        _log.warning(
            "%s: the comma of %s in %s is read as a decimal point; if it separates thousands, save the "
            "numbers without",
            path,
            doubtful[1],
            doubtful[0],
        )


def _all(columns: Sequence[Sequence[str]]) -> Iterator[str]:
    for texts in columns:
        yield from texts


def _thousands(path: Path, name: str, text: str, where: str) -> CanvasError:
    return CanvasError(
        f"{path}: {name} holds {text} {where}, as numbers with separated thousands do; save them without "
        "(Excel: Format Cells, Number)"
    )
