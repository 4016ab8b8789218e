"""Columns of text as arrays of one width: their memory goes by the longest text, and is bounded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LONGEST = 100_000  # characters of a text
_MOST_BYTES = 2**30  # of a column
_CHARACTER = np.dtype("U1").itemsize


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
