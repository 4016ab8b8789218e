"""Linear mixed model of several measurements per brain, a random intercept a brain, all regions at once.

y = group + measurement + brain + residual, by restricted maximum likelihood (REML; Laird and Ware 1982).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from scipy import stats

_GRID = np.concatenate([[0.0], np.logspace(-3, 4, 22)])  # variance between brains over that within
_STEPS = 30  # of the golden section after the grid
_GOLDEN = (np.sqrt(5) - 1) / 2


def compare_repeated(
    y: Float64[np.ndarray, "b m r"], second: Bool[np.ndarray, " b"]
) -> dict[str, Float64[np.ndarray, " r"]]:
    """`effect` of the second group on y, its 95 % interval `low`, `high`, and `p` per region.

    y (brains, measurements, regions) is NaN where a brain lacks one. Student's t has the brains less two as
    degrees of freedom, however many measurements there are: these share the brain.
    """
    sums = _Sums.of(y, second)
    ratio = _best_ratio(sums)
    fit = _fit(sums, ratio)
    freedom = (sums.sizes > 0).sum(1) - 2
    effect = fit.beta[:, 1]
    error = np.sqrt(np.maximum(fit.variance[:, 1, 1], 0))
    estimable = error > 1e-12
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(estimable, 2 * stats.t.sf(np.abs(effect) / error, freedom), 1.0)
        half = np.where(estimable, stats.t.ppf(0.975, freedom) * error, 0.0)
    return {"effect": effect, "low": effect - half, "high": effect + half, "p": p}


def estimable(y: Float64[np.ndarray, "b m r"], second: Bool[np.ndarray, " b"]) -> Bool[np.ndarray, " r"]:
    """Regions whose difference can be told: not where one group has left sides alone, one right sides."""
    xx = _Sums.of(np.where(np.isnan(y).all((0, 1)), 0.0, y), second).xx
    return np.linalg.matrix_rank(xx, hermitian=True) == xx.shape[1]


class _Sums(NamedTuple):
    """Sufficient statistics of the likelihood: products within brains, regions first."""

    sizes: Float64[np.ndarray, "r b"]
    xx: Float64[np.ndarray, "r p p"]
    xy: Float64[np.ndarray, "r p"]
    yy: Float64[np.ndarray, " r"]
    x_of_brain: Float64[np.ndarray, "r b p"]
    y_of_brain: Float64[np.ndarray, "r b"]

    @classmethod
    def of(cls, y: np.ndarray, second: np.ndarray) -> _Sums:
        brains, measurements, _ = y.shape
        known = ~np.isnan(y)
        design = np.zeros((brains, measurements, 1 + measurements))
        design[:, :, 0], design[:, :, 1] = 1, second[:, None]
        for at in range(1, measurements):
            design[:, at, 1 + at] = 1
        # Centred: the intercept takes it, and sums of squares keep their digits.
        centred = np.where(known, y - np.nanmean(y, axis=(0, 1)), 0.0)
        weight = known.astype(float)
        return cls(
            weight.sum(1).T,
            np.einsum("bmr,bmp,bmq->rpq", weight, design, design),
            np.einsum("bmr,bmp->rp", centred, design),
            (centred**2).sum((0, 1)),
            np.einsum("bmr,bmp->rbp", weight, design),
            centred.sum(1).T,
        )


class _Fit(NamedTuple):
    beta: Float64[np.ndarray, "r p"]
    variance: Float64[np.ndarray, "r p p"]
    minus_twice_log_likelihood: Float64[np.ndarray, " r"]


def _fit(sums: _Sums, ratio: Float64[np.ndarray, " r"]) -> _Fit:
    """Generalised least squares where the variance between brains is `ratio` times that within."""
    shrink = ratio[:, None] / (1 + sums.sizes * ratio[:, None])
    a = sums.xx - np.einsum("rb,rbp,rbq->rpq", shrink, sums.x_of_brain, sums.x_of_brain)
    c = sums.xy - np.einsum("rb,rbp,rb->rp", shrink, sums.x_of_brain, sums.y_of_brain)
    q = sums.yy - (shrink * sums.y_of_brain**2).sum(1)
    inverse = np.linalg.inv(a)
    beta = np.einsum("rpq,rq->rp", inverse, c)
    freedom = sums.sizes.sum(1) - beta.shape[1]
    squares = np.maximum(q - (beta * c).sum(1), 1e-12)
    value = freedom * np.log(squares) + np.log1p(sums.sizes * ratio[:, None]).sum(1)
    value += np.linalg.slogdet(a)[1]
    return _Fit(beta, (squares / freedom)[:, None, None] * inverse, value)


def _best_ratio(sums: _Sums) -> Float64[np.ndarray, " r"]:
    """The ratio of variances of highest restricted likelihood: the best of a grid, then a golden section."""
    regions = len(sums.yy)

    def value(ratio: np.ndarray) -> np.ndarray:
        return _fit(sums, ratio).minus_twice_log_likelihood

    values = np.stack([value(np.full(regions, ratio)) for ratio in _GRID])
    best = values.argmin(0)
    low, high = _GRID[np.maximum(best - 1, 0)], _GRID[np.minimum(best + 1, len(_GRID) - 1)]
    for _ in range(_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        better = value(left) < value(right)
        low, high = np.where(better, low, left), np.where(better, right, high)
    middle = (low + high) / 2
    return np.where(value(middle) < values.min(0), middle, _GRID[best])
