"""The column row of a CSV: after notes and titles, with Excel's `sep=` and TrackMate's rows of units."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from canvas_fm.data.points.coordinate_columns import NO_NAMES, axis_of, is_napari_axis, is_number
from canvas_fm.errors import CanvasError

_MOST_COLUMNS = 100_000  # a table of genes has some 30,000
_MOST_NOTES = 100_000  # lines before the columns
_TITLES = 20  # lines before the columns that are looked through: Imaris writes three
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060"))  # a second byte-order mark, and blanks
_SEP = re.compile(r'"?sep=(.)"?[\s,;]*', re.IGNORECASE)  # Excel's note of its delimiter
_SLICER = "columns = "  # 3D Slicer's .fcsv: # columns = id,x,y,z,…
_UNIT = re.compile(r"\((.*)\)")
# ClearMap 2 writes the first letter of each of its columns, so that x, y and z stand there twice.
_CLEARMAP = ("x", "y", "z", "size", "source", "xt", "yt", "zt", "order", "name")


class Header(NamedTuple):
    """Column names, the metadata lines before them, units by column, and the rows that follow.

    `ahead` are the lines of them that were read already, where the rows are those of the file as it is.
    """

    names: list[str]
    delimiter: str
    meta: dict[str, str]
    units: dict[str, str]
    rows: Iterator[list[str]]
    ahead: list[str] | None = None


def read_header(path: Path, file: Iterable[str]) -> Header:
    """Find the column row; columns without a name are called `column_1` and so on, by their place."""
    meta: dict[str, str] = {}
    lines: Iterator[str] = iter(file)
    ahead: list[str] | None = []
    delimiter, header, is_note = None, "", False
    for number, line in enumerate(lines):
        if number == _MOST_NOTES:
            raise CanvasError(f"{path} names no columns in its first {_MOST_NOTES:,} lines")
        line = line.translate(_INVISIBLE)
        if sep := _SEP.fullmatch(line.strip("\r\n")):
            delimiter = sep[1]
        elif line.startswith("#"):
            if _names_axes(line[1:], delimiter):
                header, is_note = line[1:].lstrip(), True  # as numpy.savetxt writes it, ClearMap's too
                break
            key, colon, value = line[1:].partition(":")
            if colon:
                meta[key.strip()] = value.strip()
        elif line.strip(" \t\r\n,;"):
            header, ahead = _after_titles(line, lines, delimiter)
            lines = chain(ahead, lines)
            break
    header = header.translate(_INVISIBLE)
    if header.startswith(_SLICER):
        raise CanvasError(
            f"{path} holds markups of 3D Slicer, in mm along a patient's axes; write their voxels (IJK) with "
            "columns z, y, x"
        )
    delimiter = delimiter or _delimiter(header)
    names = [
        name.strip() for name in next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
    ]
    if is_note and names == [name[0] for name in _CLEARMAP]:
        names = list(_CLEARMAP)
    names = [name or f"column_{place}" for place, name in enumerate(names, 1)]
    if len(names) > _MOST_COLUMNS:
        raise CanvasError(f"{path} has {len(names):,} columns; {_MOST_COLUMNS:,} are the most")
    lower = [name.lower() for name in names]
    times = Counter(lower)
    if repeated := [name for name in names if times[name.lower()] > 1]:
        raise CanvasError(
            f"{path} has the column {repeated[0]} more than once"
            + (NO_NAMES if any(map(is_number, names)) else "; rename one of them")
        )
    rows: Iterator[list[str]] = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    units: dict[str, str] = {}
    if "position_x" in lower:
        units, rows = _units(names, rows, lower.index("position_x"))
        ahead = None
    if is_note and lower[-1] == "name":
        rows = (_joined(row, len(names), delimiter) for row in rows)
        ahead = None
    return Header(names, delimiter, meta, units, rows, ahead)


def _after_titles(line: str, lines: Iterator[str], delimiter: str | None) -> tuple[str, list[str]]:
    """The first of the next lines that names coordinates, else this line; and those after it."""
    ahead = [line, *islice(lines, _TITLES)]
    start = next((at for at, text in enumerate(ahead) if _names_axes(text, delimiter)), 0)
    return ahead[start], ahead[start + 1 :]


def _delimiter(line: str) -> str:
    words = line.replace('"', "").split()
    if not re.search("[,;\t]", line) and len(words) > 1 and names_axes(words):
        return " "  # numpy.savetxt
    return ":" if not re.search("[,;\t]", line) and ":" in line else max(",;\t", key=line.count)


def _names_axes(line: str, delimiter: str | None) -> bool:
    """Whether a line of a table names all three coordinates."""
    line = line.translate(_INVISIBLE)
    if (delimiter or _delimiter(line)) == " ":
        return names_axes(line.replace('"', "").split())
    return names_axes([name.strip().strip('"') for name in line.split(delimiter or _delimiter(line))])


def names_axes(names: Sequence[str]) -> bool:
    """Whether the names of columns include all three coordinates."""
    axes = {coordinate.axis for name in names if (coordinate := axis_of(name))}
    return axes == {"z", "y", "x"} or sum(map(is_napari_axis, names)) >= 2


def _units(
    names: list[str], rows: Iterator[list[str]], place: int
) -> tuple[dict[str, str], Iterator[list[str]]]:
    """Units by column of TrackMate's further rows of names and units, and the rows after them."""
    units: dict[str, str] = {}
    for row in rows:
        is_name = place < len(row) and row[place].strip() == "X"
        if (
            any(map(str.strip, row))
            and not is_name
            and not any(_UNIT.fullmatch(text.strip()) for text in row)
        ):
            return units, chain([row], rows)
        for name, text in zip(names, row, strict=False):
            if unit := _UNIT.fullmatch(text.strip()):
                units[name] = unit[1]
    return units, rows


def _joined(row: list[str], width: int, delimiter: str) -> list[str]:
    """ClearMap does not quote the region's name, which stands last and may hold commas."""
    if len(row) <= width:
        return row
    return [*row[: width - 1], f"{delimiter} ".join(row[width - 1 :])]
