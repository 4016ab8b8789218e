"""Columns of a CSV typed by their contents: integers, else floats, else text."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import TextIOBase
from itertools import chain, islice
from pathlib import Path

import numpy as np

from canvas_fm.data.points.csv_columns.header import Header
from canvas_fm.data.points.csv_columns.parse import (
    EXACT,
    parse_block,
    plain_float,
    refuse_thousands,
    text_array,
)
from canvas_fm.data.points.label_values import BLANKS
from canvas_fm.errors import CanvasError

_BLOCK = 1 << 17  # rows read at a time: bounds what the text of a large file costs as Python strings
_ROW_NAMES = ": the first may be R's or pandas' row names, written without a column name; leave them out"
_CHARACTERS = 1 << 19  # of plain rows that are parsed together: what stays in the cache
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+(,\d+)?(e[-+]?\d+)?\s*", re.IGNORECASE)


def column_blocks(
    path: Path, header: Header, file: TextIOBase, as_text: frozenset[str]
) -> dict[str, list[np.ndarray]]:
    """The columns after a header as typed blocks; those in `as_text` stay text."""
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in header.names}
    rows_read, rest = 0, header.rows
    if header.ahead is not None and header.delimiter in ",;\t":
        rest = csv.reader(iter(()))
        text = "".join(header.ahead)
        while text := text + file.read(_CHARACTERS) + file.readline():
            text += "" if text.endswith("\n") else "\n"
            if not rows_read:
                refuse_thousands(path, header, text)
            parts = _plain(text, header, as_text)
            if parts is None:  # what needs a CSV reader, which may go on over several blocks
                lines = chain(text.splitlines(keepends=True), file)
                rest = csv.reader(lines, delimiter=header.delimiter, skipinitialspace=True)
                break
            for name, values in zip(header.names, parts, strict=True):
                blocks[name].append(values)
            rows_read, text = rows_read + len(parts[0]), ""
    for rows in _row_blocks(path, rest, len(header.names), rows_read + 1):
        for name, texts in zip(header.names, zip(*rows, strict=True), strict=True):
            if header.delimiter in ";\t" and _has_decimal_commas(texts):
                texts = tuple(text.replace(",", ".") for text in texts)
            blocks[name].append(text_array(texts) if name in as_text else _typed(texts))
    return blocks


def _has_decimal_commas(texts: Sequence[str]) -> bool:
    return all(_DECIMAL_COMMA.fullmatch(text) or text.strip() in BLANKS for text in texts)


def differ(parts: Sequence[np.ndarray]) -> bool:
    """Whether blocks of one column cannot become one array that loses nothing."""
    kinds = {part.dtype.kind for part in parts}
    if "U" in kinds or len(kinds) < 2:
        return len(kinds) > 1
    return kinds == {"i", "u"} or any(
        part.dtype.kind in "iu" and len(part) and int(np.abs(part.astype(object)).max()) > EXACT
        for part in parts
    )


def _plain(text: str, header: Header, as_text: frozenset[str]) -> list[np.ndarray] | None:
    if header.delimiter in ";\t" and "," in text:
        return None  # a decimal comma, or what has to be looked at to know
    kept = {place for place, name in enumerate(header.names) if name in as_text}
    return parse_block(text.encode(), header.delimiter.encode(), len(header.names), _typed, kept)


def _row_blocks(path: Path, reader: Iterator[list[str]], width: int, first: int) -> Iterator[list[list[str]]]:
    """Blocks of rows without empty lines; CanvasError where a row's length is not the header's."""
    while block := list(islice(reader, _BLOCK)):
        rows = [row for row in block if any(map(str.strip, row))]  # Excel writes blank rows as delimiters
        # … and Imaris a delimiter at the end of each row, which some programs leave out of the columns' row.
        rows = [row if any(map(str.strip, row[width:])) else row[:width] for row in rows]
        if set(map(len, rows)) - {width}:
            odd = next(i for i, row in enumerate(rows) if len(row) != width)
            raise CanvasError(
                f"{path}: row {first + odd} has {len(rows[odd])} values; the column row names {width}"
                + (_ROW_NAMES if all(len(row) == width + 1 for row in rows) else "")
            )
        first += len(rows)
        if rows and rows[-1][-1].endswith(("\n", "\r")):
            raise CanvasError(
                f"{path}: row {first - 1} opens a quote that is never closed, so that what follows is "
                "no row; close it or take it out"
            )
        if rows:
            yield rows


def _typed(texts: Sequence[str]) -> np.ndarray:
    """Integers if every text is one as Python would write it (007 stays text), else floats, else text.

    Whole numbers that a float would round, beside blanks or beyond 64 bits, stay text.
    """
    stripped = tuple(map(str.strip, texts))
    try:
        integers = list(map(int, stripped))
    except ValueError:
        pass
    else:
        if tuple(map(str, integers)) != stripped:
            return text_array(texts)
        for dtype in (np.int64, np.uint64):
            with suppress(OverflowError):
                return np.array(integers, dtype)
        return text_array(texts)
    try:
        values = np.array([np.nan if text in BLANKS else plain_float(text) for text in stripped])
    except ValueError:
        return text_array(texts)
    large = np.flatnonzero(np.abs(values) > EXACT).tolist()
    return text_array(texts) if any(stripped[row].lstrip("+-").isdecimal() for row in large) else values
