"""Logistic regression with the penalty chosen by grouped cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from canvas_fm.errors import CanvasError

# Inverse penalties from strong to weak, on standardised features.
PATH = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_DEFAULT_C = 1e-2
_FLAT = 1e-8  # a column that changes less than this is left out
Splits = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Linear:
    """A fitted logistic regression; `coef` has a row a class, or one row (the second class) of two."""

    mean: Float64[np.ndarray, " d"]
    scale: Float64[np.ndarray, " d"]
    coef: Float64[np.ndarray, "k d"]
    intercept: Float64[np.ndarray, " k"]
    c: float

    def proba(self, x: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n classes"]:
        """Class probabilities, rows summing to 1."""
        from scipy.special import expit, softmax

        logits = ((x - self.mean) / self.scale) @ self.coef.T + self.intercept
        if logits.shape[1] > 1:
            return softmax(logits, axis=1)
        return np.concatenate([expit(-logits), expit(logits)], axis=1)


@dataclass(frozen=True)
class Path:
    """Mean out-of-fold log loss at each C, and the out-of-fold predictions of the best.

    `held_out` (n, classes) is NaN for rows that no split held out. Without splits `loss` is empty.
    """

    model: Linear
    loss: dict[float, float]
    held_out: Float64[np.ndarray, "n classes"]


def fit_path(
    x: Float[np.ndarray, "n d"],
    code: Int64[np.ndarray, " n"],
    classes: int,
    splits: Splits = (),
    *,
    path: tuple[float, ...] = PATH,
) -> Path:
    """Fit on all rows with the C of lowest out-of-fold log loss.

    `code` numbers the classes from 0. Splits whose training rows lack a class are passed over; without any
    the C is 0.01.
    """
    usable = [(train, test) for train, test in splits if _complete(code[train], classes)]
    held_out = np.full((len(path), len(x), classes), np.nan)
    for train, test in usable:
        for number, model in enumerate(_fit_all(x[train], code[train], classes, path)):
            held_out[number, test] = model.proba(x[test])
    if not usable:
        (model,) = _fit_all(x, code, classes, (_DEFAULT_C,))
        return Path(model, {}, held_out[0])
    has_prediction = ~np.isnan(held_out[0, :, 0])
    chosen = held_out[:, has_prediction, code[has_prediction]]
    losses = -np.log(np.clip(chosen, 1e-12, None)).mean(axis=1)
    best = int(np.argmin(losses))
    (model,) = _fit_all(x, code, classes, (path[best],))
    return Path(model, dict(zip(path, losses.tolist(), strict=True)), held_out[best])


def _complete(code: np.ndarray, classes: int) -> bool:
    return len(np.unique(code)) == classes


def _fit_all(x: np.ndarray, code: np.ndarray, classes: int, path: tuple[float, ...]) -> list[Linear]:
    """Fit every C from the strongest penalty on, with warm starts."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if not _complete(code, classes):
        raise CanvasError(f"{len(np.unique(code))} of {classes} classes are labelled; label some of each")
    mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > _FLAT, deviation, np.inf)
    ready = (x - mean) / scale
    model = LogisticRegression(max_iter=300, tol=1e-3, warm_start=True)
    models = []
    for c in path:
        model.set_params(C=c)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty needs no more digits
            model.fit(ready, code)
        models.append(Linear(mean, scale, model.coef_.copy(), model.intercept_.copy(), c))
    return models
