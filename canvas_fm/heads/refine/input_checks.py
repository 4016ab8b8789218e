"""Validation of what a refiner is given: features, labels, brains, blocks and models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from warnings import warn

import numpy as np
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import validate_data

from canvas_fm.errors import BadInput, ModelMismatch, counted
from canvas_fm.heads.features.feature_set import FeatureSet, check_blocks, check_finite, check_provenance


def augmented_rows(refiner: Any, X: Any, copy: Any, n: int) -> np.ndarray:
    """Validate an augmented copy of X: as many rows, of the same blocks and models."""
    if isinstance(copy, FeatureSet):
        known = isinstance(X, FeatureSet)
        if known and (dict(copy.blocks) != dict(X.blocks) or dict(copy.provenance) != dict(X.provenance)):
            raise ModelMismatch("a copy's features have other blocks or models; make both the same way")
        copy = copy.x
    x = validate_data(refiner, copy, dtype=np.float32, ensure_all_finite=False, reset=False)
    check_finite(x, refiner.blocks_)
    if len(x) != n:
        raise BadInput(f"a copy has {len(x)} rows; expected {n}, the same candidates seen otherwise")
    return x


def training_rows(refiner: Any, X: Any, y: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """Features (n, d), brain of each row, and whether brains were given."""
    if isinstance(X, FeatureSet):
        refiner.n_features_in_ = X.x.shape[1]
        return X.x, np.asarray(X.groups if groups is None else groups, dtype=np.str_), True
    x, _ = validate_data(refiner, X, y, dtype=np.float32, ensure_all_finite=False, ensure_min_samples=2)
    check_finite(x, refiner.blocks)
    if groups is None:
        return x, np.full(len(x), "unknown"), False
    return x, aligned(groups, "groups", len(x)), True


def rows_to_classify(refiner: Any, X: Any, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(X, FeatureSet):
        return X.x, np.asarray(X.groups if groups is None else groups, dtype=np.str_)
    x = validate_data(refiner, X, dtype=np.float32, ensure_all_finite=False, reset=False)
    check_finite(x, refiner.blocks_)
    return x, np.full(len(x), "one") if groups is None else aligned(groups, "groups", len(x))


def blocks_of(refiner: Any, X: Any, dim: int) -> Mapping[str, slice]:
    in_features = X.blocks if isinstance(X, FeatureSet) else None
    if refiner.blocks is not None and in_features is not None and dict(refiner.blocks) != dict(in_features):
        raise BadInput(
            f"blocks are {dict(refiner.blocks)}, but the features have {dict(in_features)}; leave them out"
        )
    blocks = refiner.blocks or in_features or {"features": slice(0, dim)}
    check_blocks(blocks, dim)
    return blocks


def layout_of(refiner: Any, X: Any) -> Mapping[str, slice]:
    """Blocks of features to classify; ModelMismatch if another model computed them."""
    if not isinstance(X, FeatureSet):
        return refiner.blocks_
    for name, size in refiner.columns_.sizes.items():
        if X.block(name).shape[1] != size:
            raise ModelMismatch(
                f"block {name!r} has {X.block(name).shape[1]} columns; this refiner takes {size}"
            )
        check_provenance(name, X.provenance.get(name), refiner.provenance_.get(name))
    return X.blocks


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
