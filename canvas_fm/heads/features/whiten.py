"""Whitening of embeddings by an index's mean and covariance."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32

from canvas_fm.heads.features.feature_set import Moments
from canvas_fm.inference.search.index.index import Index

SAMPLE = 100_000  # rows by which an index is measured, drawn with a fixed seed where it has more


class Whitening:
    """Whitening transform (x − mean) · covariance^(−½) of an index's cells.

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
        """Whiten vectors (n, d) of the index's encoder; validated as in `Index.search`."""
        ready = self.index.check_queries(vectors)
        return ((ready - self._mean) @ self._root).astype(np.float32)
