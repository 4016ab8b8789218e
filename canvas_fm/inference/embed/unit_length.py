"""Vectors of length 1, whatever their layout: one a crop, one a patch, or a grid of them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def unit_length(vectors: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
    """Each vector divided by its length, zeros as they are: of (n, d), (n, tokens, d) or (n, d, z, y, x)."""
    length = np.linalg.norm(vectors, axis=2 if vectors.ndim == 3 else 1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)
