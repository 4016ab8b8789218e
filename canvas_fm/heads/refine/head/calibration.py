"""Calibration of logits to probabilities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Real

from canvas_fm.errors import BadInput

METHODS = ("temperature", "isotonic", "none")


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
