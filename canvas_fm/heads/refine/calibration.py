"""Calibration of logits to probabilities, and expected counts with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Real, Shaped

from canvas_fm.errors import BadInput

METHODS = ("temperature", "isotonic", "none")
COUNT_LEVEL = 0.9
_NORMAL = 1.6448536269514722  # the normal distribution's half-width of a 90 % interval
_FEW_REGIONS = 10


class Calibration(NamedTuple):
    """Monotone map from logit to probability, by `knots` (2, k).

    `temperature`: k is 1, and p = σ(slope · logit + offset). `isotonic`: p interpolated between logits (first
    row) and probabilities (second).
    """

    method: str
    knots: Float64[np.ndarray, "2 k"]

    def __call__(self, logits: Real[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        x = np.asarray(logits, np.float64)
        if self.method == "isotonic":
            return np.interp(x, *self.knots)
        slope, offset = self.knots[:, 0]
        return sigmoid(slope * x + offset)


def fit_calibration(
    logits: Real[np.ndarray, " n"], is_cell: Bool[np.ndarray, " n"], method: str = "temperature"
) -> Calibration:
    """Fit the calibration on out-of-fold logits and labels.

    `temperature` is Platt's (1999): slope and offset, with his smoothed targets, so that rows which are told
    apart without a mistake give no certainty. The offset is there because classes were weighted. `isotonic`
    needs a thousand rows and more, ties what it cannot tell apart, and stays off 0 and 1 by one row's worth.
    """
    x = np.asarray(logits, np.float64)
    if method == "none":
        return Calibration("temperature", np.array([[1.0], [0.0]]))
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        edge = 1 / (len(x) + 2)
        fitted = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip").fit(x, is_cell)
        return Calibration(method, np.stack([fitted.X_thresholds_, fitted.y_thresholds_]).astype(np.float64))
    if method == "temperature":
        return Calibration(method, _platt(x, is_cell))
    raise BadInput(f"calibration is {method!r}; give one of {', '.join(METHODS)}")


def _platt(x: Float64[np.ndarray, " n"], is_cell: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, "2 1"]:
    from scipy.optimize import minimize

    cells, others = int(is_cell.sum()), int((~is_cell).sum())
    target = np.where(is_cell, (cells + 1) / (cells + 2), 1 / (others + 2))
    centre, spread = float(x.mean()), float(x.std()) or 1.0
    z = (x - centre) / spread

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logit = parameters[0] * z + parameters[1]
        error = sigmoid(logit) - target
        value = np.mean(np.logaddexp(0, logit) - target * logit)
        return float(value), np.array([np.mean(error * z), np.mean(error)])

    prior = float(np.log(target.mean() / (1 - target.mean())))
    # A slope below 0 would turn the ranking round: where it does not hold at all, everything is the prior.
    fit = minimize(loss, [1.0, prior], jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    slope, offset = fit.x
    return np.array([[slope / spread], [offset - slope * centre / spread]])


def sigmoid(x: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """1 / (1 + e^−x), without overflow."""
    return np.exp(-np.logaddexp(0, -x))


class CountSpread(NamedTuple):
    """Overdispersion of region counts on held-out brains: a shared part and a factor.

    A region's count is taken to vary by Σ p (1 − p) + (`shared` · Σ p)²; `factor` deviations to either side
    held 90 % of the `regions` that were looked at (none: rows are taken to err independently).
    """

    shared: float = 0.0
    factor: float = _NORMAL
    regions: int = 0

    @classmethod
    def of(
        cls,
        p_cell: Float64[np.ndarray, " n"],
        is_cell: Bool[np.ndarray, " n"],
        regions: Shaped[np.ndarray, " n"],
    ) -> CountSpread:
        """Estimate from out-of-fold probabilities and labels, by region."""
        _, of = np.unique(regions, return_inverse=True)
        expected, variance = np.bincount(of, p_cell), np.bincount(of, p_cell * (1 - p_cell))
        off = np.bincount(of, is_cell) - expected
        n = len(expected)
        if n < 2:
            return cls()
        shared = float(np.sqrt(max(np.sum(off**2 - variance), 0) / np.sum(expected**2)))
        deviations = np.abs(off) / np.sqrt(np.maximum(variance + (shared * expected) ** 2, 1e-12))
        level = 1.0 if n < _FEW_REGIONS else min(1.0, COUNT_LEVEL * (n + 1) / n)
        factor = float(np.quantile(deviations, level, method="higher"))
        return cls(shared, max(factor, _NORMAL), n)


class Count(NamedTuple):
    """Expected number of cells, with a 90 % interval."""

    value: float
    low: float
    high: float


def expected_count(p_cell: Real[np.ndarray, " n"], spread: CountSpread | None = None) -> Count:
    """Σ p with its interval; without a `spread` errors count as independent, which is too narrow."""
    spread = spread or CountSpread()
    p = np.asarray(p_cell, np.float64)
    value = float(p.sum())
    half = spread.factor * float(np.sqrt(np.sum(p * (1 - p)) + (spread.shared * value) ** 2))
    return Count(value, max(value - half, 0.0), min(value + half, float(len(p))))


def counts_by_region(
    p_cell: Real[np.ndarray, " n"],
    regions: Shaped[np.ndarray, " n"] | Sequence[str],
    spread: CountSpread | None = None,
) -> dict[str, Count]:
    """Expected count of every region, by name."""
    regions = np.asarray(regions)
    return {str(name): expected_count(p_cell[regions == name], spread) for name in np.unique(regions)}
