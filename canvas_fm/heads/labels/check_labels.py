"""Labels of candidates: two classes, and skipped rows."""

from __future__ import annotations

from typing import Any
from warnings import warn

import numpy as np
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from canvas_fm.errors import BadInput, counted


def labels_of(y: Any, n: int, unlabelled: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The label of each of n rows, and which rows carry one: not those of `unlabelled` (None: all do).

    Raises BadInput for another number of labels, none at all, one class only, or more than two.
    """
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = _column(labels)
    if labels.shape != (n,):
        raise BadInput(f"labels have shape {labels.shape}; expected ({n},), one a row of the features")
    keep = np.ones(n, bool) if unlabelled is None else labels != unlabelled
    if not keep.any():
        raise BadInput(
            f"none of the {counted(n, 'row')} carries a label: all are {unlabelled}, which is skipped"
        )
    check_classification_targets(labels[keep])
    classes = np.unique(labels[keep])
    if type_of_target(labels[keep]) == "multiclass":
        raise BadInput(
            "Only binary classification is supported. The type of the target is multiclass: give labels "
            f"of 1 (a cell) and 0 (none); found {classes[:6].tolist()}"
        )
    if len(classes) < 2:
        raise BadInput(
            f"all {counted(keep.sum(), 'label', 'are')} {classes[0]} ({n - keep.sum()} more are "
            "skipped): one "
            "class only; label some candidates of the other class too (1 is a cell, 0 is none)"
        )
    return labels, keep


def aligned(values: Any, name: str, n: int) -> np.ndarray:
    """Values as text, one a row; BadInput for another number of them."""
    array = np.asarray(values)
    if array.shape != (n,):
        raise BadInput(f"{name} have shape {array.shape}; expected ({n},), one a row of the features")
    return array.astype(np.str_)


def _column(labels: np.ndarray) -> np.ndarray:
    message = "A column-vector y was passed when a 1d array was expected; labels are (n,)"
    warn(message, DataConversionWarning, stacklevel=5)
    return labels[:, 0]
