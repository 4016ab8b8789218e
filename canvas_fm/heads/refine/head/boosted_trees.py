"""Boosted trees on few columns: grown by scikit-learn, kept as tensors."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

from canvas_fm.models.heads.boosted_trees import TreeEnsemble

ITERATIONS = 200


def grow_trees(
    x: Float32[np.ndarray, "n d"], is_cell: Bool[np.ndarray, " n"], *, balanced: bool, seed: int
) -> TreeEnsemble:
    """Boosted trees of at most 15 leaves, as the baseline `shape + trees` has them; the same for a seed."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=0.06,
        max_iter=ITERATIONS,
        max_leaf_nodes=15,
        min_samples_leaf=int(np.clip(len(x) // 10, 2, 20)),
        l2_regularization=1.0,
        max_features=0.5,
        early_stopping=False,
        class_weight="balanced" if balanced else None,
        random_state=seed,
    ).fit(x, is_cell)
    return _as_tensors(model)


def _as_tensors(model: object) -> TreeEnsemble:
    """The nodes of every tree; scikit-learn has no public way to them, so a test compares the logits."""
    grown = [trees[0].nodes for trees in model._predictors]  # type: ignore[attr-defined]
    most = max(len(nodes) for nodes in grown)
    net = TreeEnsemble(len(grown), most, int(max(nodes["depth"].max() for nodes in grown)))
    for number, nodes in enumerate(grown):
        itself = np.arange(len(nodes))
        leaf = nodes["is_leaf"].astype(bool)
        for name, values in (
            ("feature", np.where(leaf, 0, nodes["feature_idx"])),
            ("threshold", _floor32(np.where(leaf, 0.0, nodes["num_threshold"]))),
            ("left", np.where(leaf, itself, nodes["left"])),
            ("right", np.where(leaf, itself, nodes["right"])),
            ("value", nodes["value"].astype(np.float32)),
        ):
            getattr(net, name)[number, : len(nodes)] = torch.from_numpy(np.asarray(values).copy())
    net.start.fill_(float(np.ravel(model._baseline_prediction)[0]))  # type: ignore[attr-defined]
    return net.eval()


def _floor32(threshold: Float64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """The largest single-precision numbers not above: rows are single, so none changes its side."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)
