"""Strata of a sample: groups by score or density, and how many to draw from each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, Real


def quantile_strata(values: Real[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " n"]:
    """Stratum of each row, 0 the lowest values: about equal in size, ties together."""
    if not len(values):
        return np.zeros(0, np.int64)
    edges = np.unique(np.quantile(values, np.arange(1, count) / count, method="higher"))
    _, stratum = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)
    return stratum.astype(np.int64)


def allocate(sizes: Sequence[int], weights: Sequence[float], total: int) -> list[int]:
    """Sample size of each stratum: in proportion to `weights`, at least two, at most its size."""
    size = np.asarray(sizes, np.int64)
    drawn = np.minimum(size, 2)
    weight = np.asarray(weights, np.float64)
    while (left := total - int(drawn.sum())) > 0 and (open_ := drawn < size).any():
        share = np.where(open_, weight, 0.0)
        if share.sum() <= 0:
            share = open_.astype(np.float64)
        ideal = share / share.sum() * total
        # The one that is farthest below its share; a stratum that is full passes the rest on.
        step = np.where(open_, ideal - drawn, -np.inf)
        more = np.clip(np.floor(step * left / max(step[step > 0].sum(), 1e-9)), 0, size - drawn)
        more = np.where(open_, more, 0).astype(np.int64)
        if not more.sum():
            more[int(np.argmax(step))] = 1
        drawn = drawn + more
    return [int(n) for n in drawn]


def draw_stratified(
    stratum: Int64[np.ndarray, " n"], drawn: Sequence[int], random: np.random.Generator
) -> Int64[np.ndarray, " k"]:
    """Row indices: so many of each stratum without replacement, all in random order."""
    rows = [
        random.choice(np.flatnonzero(stratum == number), size=n, replace=False)
        for number, n in enumerate(drawn)
    ]
    return random.permutation(np.concatenate(rows)) if rows else np.zeros(0, np.int64)


def doubt(p: Float64[np.ndarray, " n"]) -> float:
    """Mean deviation of a yes-or-no answer at these probabilities, never 0."""
    return float(np.sqrt(np.maximum(p * (1 - p), 0.0025)).mean())
