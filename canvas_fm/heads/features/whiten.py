"""Whitening by an index: vectors in units of how far the cells of many brains spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32

from canvas_fm.heads.features.feature_set import Moments
from canvas_fm.inference.search.index import Index

SAMPLE = 100_000  # rows by which an index is measured, drawn with a fixed seed where it has more


class Whitening:
    """Vectors minus the index's mean, by its covariance^(−½): its own rows get variance 1 in every direction.

    Directions that hardly vary are kept finite (see `Moments.root`). Vectors are compared as the index
    compares: with the cosine metric they are first brought to length 1.
    """

    def __init__(self, index: Index) -> None:
        rows = np.arange(len(index))
        if len(rows) > SAMPLE:
            rows = np.sort(np.random.default_rng(0).choice(len(rows), SAMPLE, replace=False))
        self.index = index
        moments = Moments.of(index.vectors(rows))
        self._mean, self._root = moments.mean, moments.root()

    def __call__(self, vectors: Any) -> Float32[np.ndarray, "n d"]:
        """Vectors (n, d) of the index's encoder, whitened; refused is what `Index.search` refuses."""
        ready = self.index.check_queries(vectors)
        return ((ready - self._mean) @ self._root).astype(np.float32)
