"""k-nearest-neighbour classification by cosine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64

KS = (10, 20, 100)
_TEMPERATURE = 0.07  # as in Wu et al. 2018 and the DINO papers
_AT_ONCE = 2048


def knn_proba(
    train: Float[np.ndarray, "n d"],
    code: Int64[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    classes: int,
    *,
    ks: Sequence[int] = KS,
) -> dict[int, Float64[np.ndarray, "m classes"]]:
    """Class shares among the k nearest training rows by cosine, weighted by exp(cosine / 0.07).

    For every k of `ks`; where there are fewer training rows, all of them. Columns are centred by the training
    rows first: a mean that all embeddings share says nothing.
    """
    centre = train.mean(axis=0, dtype=np.float64)
    known, queries = _unit(train - centre), _unit(test - centre)
    most = min(max(ks), len(known))
    out = {k: np.empty((len(queries), classes)) for k in ks}
    for first in range(0, len(queries), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        cosine = queries[part] @ known.T
        neighbours = np.argpartition(-cosine, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(cosine, neighbours, axis=1), axis=1, kind="stable")
        neighbours = np.take_along_axis(neighbours, order, axis=1)
        closeness = np.take_along_axis(cosine, neighbours, axis=1)
        weight = np.exp((closeness - closeness[:, :1]) / _TEMPERATURE)
        for k in ks:
            votes = np.stack(
                [
                    (weight[:, :k] * (code[neighbours[:, :k]] == label)).sum(axis=1)
                    for label in range(classes)
                ],
                axis=1,
            )
            out[k][part] = votes / votes.sum(axis=1, keepdims=True)
    return out


def _unit(x: np.ndarray) -> Float64[np.ndarray, "n d"]:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.maximum(length, 1e-12)
