"""Repeated positions among points, as where a table was pasted twice."""

from __future__ import annotations

import logging

import numpy as np
from jaxtyping import Float64

from canvas_fm.errors import counted

_log = logging.getLogger(__name__)


def repeated_rows(zyx: Float64[np.ndarray, "n 3"]) -> int:
    """Number of rows that repeat an earlier position."""
    if not len(zyx):
        return 0
    # Hashes are sorted in a tenth of the time; rows are compared where those of several are the same.
    bits = np.ascontiguousarray(zyx + 0.0).view(np.uint64)  # -0 is 0
    mixed = np.zeros(len(bits), np.uint64)
    for column in bits.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    rising = np.sort(mixed)
    repeated = rising[1:][rising[1:] == rising[:-1]]
    if not len(repeated):
        return 0
    few = zyx[repeated[np.searchsorted(repeated[:-1], mixed)] == mixed]
    few = few[np.lexsort(few.T)]
    return int((few[1:] == few[:-1]).all(axis=1).sum())


def warn_of_repeated(zyx: Float64[np.ndarray, "n 3"], name: str) -> None:
    """Log a warning where cells are counted twice."""
    if repeated := repeated_rows(zyx):
        _log.warning(
            "%s: %s of %s repeat the position of another; each is taken for a cell", name, f"{repeated:,}",
            counted(len(zyx), "row"),
        )  # fmt: skip
