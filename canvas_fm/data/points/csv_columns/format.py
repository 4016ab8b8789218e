"""Rows of a CSV, many at a time: numbers as the shortest decimals that read back as the same values.

A value is m / 10^k with the fewest decimals k for which that division gives it back; its digits are written
into a matrix of bytes, right-aligned, and what is not used is left out when rows are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

_MOST_DECIMALS = 15
_POWERS = 10.0 ** np.arange(_MOST_DECIMALS + 1)
_LEAST, _LARGEST = 1e-4, 2.0**53  # Python writes smaller and much larger numbers with an exponent
_EXPONENT = 1e16  # from here on
_SAMPLE = 512  # values that tell whether decimals suit a column
_FEW = 0.02  # values of a column that are worth formatting one by one
_LONGEST = 256  # text of a column whose rows are put together as a matrix
_ZERO = ord("0")


class Texts(NamedTuple):
    """Texts of a column: a row of bytes for each, of which `used` are its own."""

    bytes: UInt8[np.ndarray, "rows width"]
    used: Bool[np.ndarray, "rows width"]


def format_rows(columns: Sequence[np.ndarray], delimiter: bytes) -> bytes | None:
    """Rows of a table as `csv.writer` would write them; None where a text would have to be quoted.

    NaN is a blank, as spreadsheets have it; in the first column it is written out, so that no row is empty.
    """
    parts = []
    for place, values in enumerate(columns):
        texts = _formatted(values) or _one_by_one(values, delimiter, alone=len(columns) == 1)
        if texts is None:
            return None
        if place and values.dtype.kind == "f":
            texts.used[np.isnan(values)] = False
        parts.append(texts)
    widths = [texts.bytes.shape[1] + 1 for texts in parts]
    rows, at = np.empty((len(columns[0]), sum(widths)), np.uint8), 0
    used = np.ones(rows.shape, bool)
    for texts, width in zip(parts, widths, strict=True):
        rows[:, at : at + width - 1] = texts.bytes
        used[:, at : at + width - 1] = texts.used
        rows[:, at + width - 1] = delimiter[0]
        at += width
    rows[:, -1] = ord("\n")
    return rows[used].tobytes()


def _formatted(values: np.ndarray) -> Texts | None:
    if values.dtype == np.bool_ or values.dtype.kind in "iu":
        if values.dtype == np.uint64 and (values > _LARGEST).any():
            return None
        return _decimal(values.astype(np.int64), np.zeros(len(values), np.int64), values < 0)
    if values.dtype not in (np.float32, np.float64):
        return None
    if (step := len(values) // _SAMPLE) > 1 and _formatted(values[::step]) is None:
        return None
    size = np.abs(values.astype(np.float64))
    plain = (size < _LARGEST) & ((size >= _LEAST) | (size == 0))
    digits, decimals = np.zeros(len(values), np.int64), np.ones(len(values), np.int64)
    open_rows = np.flatnonzero(plain)
    for k in range(1, _MOST_DECIMALS + 1):
        near = np.rint(size[open_rows] * _POWERS[k])
        same = ((near / _POWERS[k]).astype(values.dtype) == np.abs(values[open_rows])) & (near < _LARGEST)
        settled = open_rows[same]
        digits[settled], decimals[settled] = near[same], k
        open_rows = open_rows[~same]
        if not len(open_rows):
            break
    plain[open_rows] = False
    if (~plain).mean() > _FEW:
        return None
    return _with_others(_decimal(digits, decimals, np.signbit(values)), values, np.flatnonzero(~plain))


def _decimal(
    digits: Int64[np.ndarray, " n"], decimals: Int64[np.ndarray, " n"], negative: Bool[np.ndarray, " n"]
) -> Texts:
    """Digits with a point before the last `decimals`, and a sign."""
    digits = np.abs(digits)
    most = int(decimals.max(initial=0))
    whole, fraction = digits, np.zeros_like(digits)
    if most:
        scale = (10 ** np.arange(most + 1))[decimals]
        whole = digits // scale
        fraction = (digits - whole * scale) * (10 ** np.arange(most + 1))[most - decimals]
    width = len(str(int(whole.max(initial=0))))
    text = np.empty((len(digits), 1 + width + (1 + most if most else 0)), np.uint8)
    used = np.ones(text.shape, bool)
    _write_digits(text[:, 1 : 1 + width], whole)
    length = 1 + sum((whole >= 10**place).astype(np.int64) for place in range(1, width))
    first = width - length  # the column before the first digit takes the sign
    used[:, 1 : 1 + width] = np.arange(width) >= np.reshape(first, (-1, 1))
    used[:, 0] = False
    signed = np.flatnonzero(negative)
    place = (first if np.ndim(first) else np.full(len(digits), first))[signed]
    text[signed, place], used[signed, place] = ord("-"), True
    if most:
        text[:, 1 + width] = ord(".")
        _write_digits(text[:, 2 + width :], fraction)
        used[:, 2 + width :] = np.arange(most) < decimals[:, None]
    return Texts(text, used)


def _write_digits(into: UInt8[np.ndarray, "n width"], values: Int64[np.ndarray, " n"]) -> None:
    if into.shape[1] < 10:
        values = values.astype(np.uint32)
    for place in range(into.shape[1] - 1, -1, -1):
        tenth = values // values.dtype.type(10)
        into[:, place] = values - tenth * values.dtype.type(10) + _ZERO
        values = tenth


def _one_by_one(values: np.ndarray, delimiter: bytes, *, alone: bool) -> Texts | None:
    """Numbers that decimals do not suit, and texts without anything that is quoted."""
    if values.dtype.kind == "U" and not alone:
        if values.dtype.itemsize > 4 * _LONGEST:  # a byte string of it takes numpy 600 bytes a character
            return None
        listed = values.tolist()
        if any(
            character in (joined := "".join(listed))
            for character in ('"', "\n", "\r", "\0", delimiter.decode())
        ):
            return None
        written = [text.encode() for text in listed] if not joined.isascii() else values.astype("S").tolist()
    elif values.dtype == np.float64:
        written = _shortest(values)
    elif values.dtype == np.float32:
        written = values.astype("S").tolist()
    else:
        return None
    length = np.fromiter(map(len, written), np.int64, len(written))
    if length.max(initial=1) > _LONGEST:
        return None
    text = np.array(written, f"S{max(int(length.max(initial=1)), 1)}")
    width = text.dtype.itemsize
    return Texts(text.view(np.uint8).reshape(-1, width), np.arange(width) < length[:, None])


def _shortest(values: np.ndarray) -> list[bytes]:
    """`repr` of each float64: by a formatter in Rust, which differs in exponents alone."""
    from pydantic_core import to_json

    size = np.abs(values)
    plain = ((size >= _LEAST) & (size < _EXPONENT)) | (size == 0)
    written = to_json(np.where(plain, values, 0.0).tolist())[1:-1].split(b",")
    for row in np.flatnonzero(~plain).tolist():
        written[row] = repr(float(values[row])).encode()
    return written


def _with_others(texts: Texts, values: np.ndarray, rows: Int64[np.ndarray, " few"]) -> Texts:
    """Rows that decimals do not suit (exponents, 17 digits, NaN) as Python writes them."""
    if not len(rows):
        return texts
    kind = str if values.dtype == np.float32 else repr
    listed = values[rows] if values.dtype == np.float32 else values[rows].tolist()
    written = [kind(value).encode() for value in listed]
    missing = max(map(len, written)) - texts.bytes.shape[1]
    text, used = (np.pad(part, [(0, 0), (0, max(missing, 0))]) for part in texts)
    for row, characters in zip(rows.tolist(), written, strict=True):
        text[row, : len(characters)] = np.frombuffer(characters, np.uint8)
        used[row] = np.arange(text.shape[1]) < len(characters)
    return Texts(text, used)
