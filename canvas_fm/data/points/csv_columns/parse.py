"""Number columns of plain CSV text, parsed many rows at a time; correctly rounded.

Eight digits are read as one 64-bit word (Lemire, "Number parsing at a gigabyte per second", 2021). A field is
digits m with k of them after the point: m / 10^k is correctly rounded where both are exact. What is anything
else (exponents, blanks, text) goes through Python's `float`, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt64

from canvas_fm.data.points.csv_columns.texts import text_array

EXACT = 2**53  # up to here a float64 holds every whole number
_DOT, _MINUS, _NEWLINE, _ZERO, _BLANK = b".-\n0 "
_WORD = 8
_POWERS = 10.0 ** np.arange(23)  # exact, as are the divisions by them
_WHOLE_POWERS = 10 ** np.arange(20, dtype=np.uint64)
_MOST_DIGITS = 18  # that are parsed here; any 19 fit into 64 bits
_FEW = 0.02  # fields of a column that are worth parsing one by one
_EXTENDED = np.finfo(np.longdouble).nmant >= 63
Parse = Callable[[list[str]], np.ndarray]


class Fields(NamedTuple):
    """Where the fields of a block of rows lie: first byte, decimal point (or end), end; and which are odd."""

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
