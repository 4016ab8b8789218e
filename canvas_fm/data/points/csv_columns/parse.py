"""Number columns of plain CSV text, parsed many rows at a time; correctly rounded.

Eight digits are read as one 64-bit word (Lemire, "Number parsing at a gigabyte per second", 2021). A field is
digits m with k of them after the point: m / 10^k is correctly rounded where both are exact. What is anything
else (exponents, blanks, text) goes through Python's `float`, one by one.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt64

from canvas_fm.data.points.coordinate_columns import axis_of, is_napari_axis
from canvas_fm.data.points.csv_columns.header import Header
from canvas_fm.errors import CanvasError

EXACT = 2**53  # up to here a float64 holds every whole number
_DOT, _MINUS, _NEWLINE, _ZERO, _BLANK = b".-\n0 "
_WORD = 8
_POWERS = 10.0 ** np.arange(23)  # exact, as are the divisions by them
_WHOLE_POWERS = 10 ** np.arange(20, dtype=np.uint64)
_MOST_DIGITS = 18  # that are parsed here; any 19 fit into 64 bits
_FEW = 0.02  # fields of a column that are worth parsing one by one
_EXTENDED = np.finfo(np.longdouble).nmant >= 63
Parse = Callable[[list[str]], np.ndarray]
_log = logging.getLogger(__name__)
_GROUPED = {",": re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+"), ".": re.compile(r"[-+]?[1-9]\d{0,2}(\.\d{3})+")}
_WHOLE = re.compile(r"[-+]?\d{1,3}")
_LONGEST = 100_000  # characters of a text
_MOST_BYTES = 2**30  # of a column
_CHARACTER = np.dtype("U1").itemsize


class Fields(NamedTuple):
    """Positions of the fields of a block: first byte, decimal point (or end), end; and which are odd."""

    bytes: UInt8[np.ndarray, " size"]
    start: Int64[np.ndarray, "rows columns"]
    dot: Int64[np.ndarray, "rows columns"]
    end: Int64[np.ndarray, "rows columns"]
    odd: np.ndarray


def parse_block(
    text: bytes, delimiter: bytes, columns: int, parse: Parse, as_text: Container[int] = ()
) -> list[np.ndarray] | None:
    """The columns of whole rows that end in a line feed; None unless they are plain.

    Plain is what needs no CSV reader: no quotes, no blanks around fields, every row as long as `columns`.
    Columns of numbers are parsed here with the types that `parse` would give them; `parse` gets the texts of
    all others, those in `as_text` stay text.
    """
    fields = None if b'"' in text or b"\r" in text else _fields(text, delimiter, columns)
    if fields is None:
        return None
    rows: list[list[str]] = []
    parsed = []
    for column in range(columns):
        values = None if column in as_text else _numbers(fields, column, text)
        if values is None:
            rows = rows or [row.split(delimiter.decode()) for row in text.decode()[:-1].split("\n")]
            texts = [row[column] for row in rows]
            values = text_array(texts) if column in as_text else parse(texts)
        parsed.append(values)
    return parsed


def _fields(text: bytes, delimiter: bytes, columns: int) -> Fields | None:
    array = np.frombuffer(text + bytes(_WORD), np.uint8)
    other = np.flatnonzero(array[: len(text)] - np.uint8(_ZERO) > 9)  # all but digits
    kinds = array[other]
    is_end = (kinds == delimiter[0]) | (kinds == _NEWLINE)
    is_dot = kinds == _DOT
    end = other[is_end]
    if len(end) % columns:
        return None
    marks = kinds[is_end].reshape(-1, columns)
    if (marks[:, -1] != _NEWLINE).any() or (marks[:, :-1] != delimiter[0]).any():
        return None
    start = np.empty_like(end)
    start[0], start[1:] = 0, end[:-1] + 1
    empty = (start == end).reshape(-1, columns)
    if (array[start] == _BLANK).any() or empty.all(axis=1).any():
        return None
    odd = np.zeros(len(end), bool)
    neither = other[~(is_end | is_dot)]
    field = np.searchsorted(end, neither)
    odd[field[(array[neither] != _MINUS) | (neither != start[field])]] = True
    either, is_point = (part[is_end | is_dot] for part in (other, is_dot))
    if len(either) == 2 * len(end) and is_point[::2].all():
        dot = either[::2]  # each field has one point
    else:
        field = (np.cumsum(~is_point) - ~is_point)[is_point]
        dot = end.copy()
        dot[field] = either[is_point]
        odd[field[1:][np.diff(field) == 0]] = True
    shape = (-1, columns)
    return Fields(array, start.reshape(shape), dot.reshape(shape), end.reshape(shape), odd.reshape(shape))


def plain_float(text: str) -> float:
    """A number as other programs read it too: Python alone takes 1_0 for 10."""
    if "_" in text:
        raise ValueError(f"could not convert string to float: {text!r}")
    return float(text)


def _numbers(fields: Fields, column: int, text: bytes) -> np.ndarray | None:
    """One column as integers or floats; None where it has to be looked at text by text."""
    start, dot, end = (part[:, column].copy() for part in fields[1:4])
    odd = fields.odd[:, column].copy()
    negative = fields.bytes[start] == _MINUS
    start += negative
    decimals = np.maximum(end - dot - 1, 0)
    digits = dot - start + decimals
    below_one = (decimals > 0) & (dot - start == 1) & (fields.bytes[start] == _ZERO)
    # Floats below one are written with up to 22 decimals: zeros that lead are none of the digits.
    most = np.where(below_one, _MOST_DIGITS + 2, _MOST_DIGITS)
    for place in range(1, len(_POWERS) - len(_WHOLE_POWERS) + 1):
        below_one &= fields.bytes[np.minimum(dot + place, len(text) - 1)] == _ZERO
        most += below_one
    odd |= (digits < 1) | (digits > most)
    if odd.mean() > _FEW:
        return None
    start[odd] = dot[odd] = end[odd]
    decimals[odd] = digits[odd] = 0
    value = _whole(fields.bytes, start, dot)
    if decimals.any():
        value = value * _WHOLE_POWERS[np.minimum(decimals, len(_WHOLE_POWERS) - 1)] + _whole(
            fields.bytes, end - decimals, end
        )
    with_point = dot < end
    if not with_point.any():
        leading_zero = (fields.bytes[np.minimum(start, len(text) - 1)] == _ZERO) & ((digits > 1) | negative)
        if odd.any() or leading_zero.any():
            return None
        signed = value.astype(np.int64)
        return np.where(negative, -signed, signed)
    numbers = _divided(value, decimals, odd)
    if numbers is None:
        return None
    numbers = np.where(negative, -numbers, numbers)
    for row in np.flatnonzero(odd).tolist():
        first, last = int(fields.start[row, column]), int(fields.end[row, column])
        try:
            numbers[row] = plain_float(text[first:last].decode("ascii", "replace"))
        except ValueError:
            return None
    # Whole numbers that a float would round stay text, which is not decided here.
    return None if (np.abs(numbers) > EXACT).any() else numbers


def _divided(
    value: UInt64[np.ndarray, " n"], decimals: Int64[np.ndarray, " n"], odd: np.ndarray
) -> Float64[np.ndarray, " n"] | None:
    """value / 10^decimals, correctly rounded; what cannot be is marked as odd, None where it is too much."""
    numbers = value.astype(np.float64) / _POWERS[decimals]
    long = np.flatnonzero(value > EXACT)
    if len(long):
        if not _EXTENDED:
            odd[long] = True
        else:
            # Rounded twice, to 64 bits and to 53, which is only wrong where the first lands on a tie.
            extended = value[long].astype(np.longdouble) / _POWERS[decimals[long]].astype(np.longdouble)
            rounded = extended.astype(np.float64)
            numbers[long] = rounded
            rest = np.abs(extended - rounded.astype(np.longdouble))
            odd[long[rest * 2 >= np.spacing(rounded) * (1 - 2**-9)]] = True
    return None if odd.mean() > _FEW else numbers


def _whole(
    array: UInt8[np.ndarray, " size"], start: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"]
) -> UInt64[np.ndarray, " n"]:
    """The digits from `start` to `end` as whole numbers, 18 at most; none is 0."""
    words = np.ndarray((len(array) - _WORD + 1,), "<u8", array.data, strides=(1,))  # unaligned, at any byte
    value = np.zeros(len(start), np.uint64)
    for part in range(-(-int((end - start).max(initial=0)) // _WORD)):
        stop = end - part * _WORD
        first = np.maximum(start, stop - _WORD)
        # The last digit comes to the highest byte, what follows it is shifted out. Shifted by 63 in place of
        # 64 bits, which is undefined, a bit of an empty field stays that the first mask takes away.
        unused = np.clip(64 - 8 * (stop - first), 0, 63).astype(np.uint64)
        word = words[first] << unused
        word &= np.uint64(0x0F0F0F0F0F0F0F0F)
        word = (word * np.uint64(2561)) >> np.uint64(8) & np.uint64(0x00FF00FF00FF00FF)
        word = (word * np.uint64(6553601)) >> np.uint64(16) & np.uint64(0x0000FFFF0000FFFF)
        word = (word * np.uint64(42949672960001)) >> np.uint64(32)
        value += word * _WHOLE_POWERS[part * _WORD] if part else word
    return value


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
            # A comma is hardly a decimal point where none has one or four digits; a point is hardly one of
            # thousands, unless every number has it.
            every = header.delimiter == ";" and len(marked) == len(texts) > 1
            if not decimal_comma and (mark == "," or every):
                doubtful = (name, mark, marked[0])
    if doubtful is not None:
        name, mark, number = doubtful
        _log.warning(
            "%s: the %s of %s in %s is read as a decimal point; if it separates thousands, save the numbers "
            "without",
            path,
            "comma" if mark == "," else "point",
            number,
            name,
        )


def _all(columns: Sequence[Sequence[str]]) -> Iterator[str]:
    for texts in columns:
        yield from texts


def _thousands(path: Path, name: str, text: str, where: str) -> CanvasError:
    return CanvasError(
        f"{path}: {name} holds {text} {where}, as numbers with separated thousands do; save them without "
        "(Excel: Format Cells, Number)"
    )


class TextsTooLarge(ValueError):
    """Texts of which an array would take much more memory than the file that they came from."""


def text_array(texts: Sequence[str]) -> np.ndarray:
    """The texts as an array; TextsTooLarge for a text, or a column, that no memory should be spent on."""
    longest = max(map(len, texts), default=0)
    _check(len(texts), longest)
    return np.array(texts, dtype=np.str_)


def joined_column(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One column of its blocks; TextsTooLarge where they are texts that would take too much memory."""
    _check(
        sum(map(len, parts)), max(p.dtype.itemsize if p.dtype.kind == "U" else 0 for p in parts) // _CHARACTER
    )
    return np.concatenate(parts)


def _check(rows: int, longest: int) -> None:
    if longest > _LONGEST:
        raise TextsTooLarge(f"it holds a text of {longest:,} characters; {_LONGEST:,} are the most")
    if rows * longest * _CHARACTER > _MOST_BYTES:
        raise TextsTooLarge(
            f"a column of {rows:,} texts, the longest of {longest:,} characters, would take "
            f"{rows * longest * _CHARACTER / 2**30:,.1f} GB; shorten the longest, or leave the column out"
        )
