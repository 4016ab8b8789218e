"""Labels of candidates in a table: cell, not a cell or unlabelled, as people and programs write them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

CELL, OTHER, UNLABELLED = 1, 0, -1
# What R, pandas, Excel and others write where there is no value.
BLANKS = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None", "NaN", "nan")
_TEXTS = {"1": CELL, "0": OTHER, "-1": UNLABELLED, "true": CELL, "false": OTHER}  # R's and Excel's TRUE
_TEXTS |= {blank.lower(): UNLABELLED for blank in BLANKS}


def as_labels(values: np.ndarray) -> Int64[np.ndarray, " n"] | None:
    """1, 0 and −1 of a column of such numbers, or of true and false; a blank and NaN are −1.

    None where the column holds anything else, as names of regions or numbers of objects.
    """
    if values.dtype.kind == "U":
        texts, place = np.unique(np.char.lower(np.char.strip(values)), return_inverse=True)
        if not set(texts.tolist()) <= set(_TEXTS):
            return None
        return np.array([_TEXTS[text] for text in texts.tolist()], np.int64)[place]
    if values.dtype.kind not in "iufb":
        return None
    filled = np.where(np.isnan(values), UNLABELLED, values) if values.dtype.kind == "f" else values
    return filled.astype(np.int64) if np.isin(filled, (CELL, OTHER, UNLABELLED)).all() else None
