"""Heads of boosted trees and blends: kept as tensors, weighed by held-out brains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from canvas_fm.errors import BadInput
from canvas_fm.evaluation.metrics.classification import auc
from canvas_fm.heads.features.feature_set import FeatureSet, Provenance
from canvas_fm.heads.refine.head import boosted_trees
from canvas_fm.heads.refine.head.head_models import choose_blend, mean_auc
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.heads.refine.refiner_folder import read_config


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(boosted_trees, "ITERATIONS", 30)


def ring(n: int = 600, seed: int = 0) -> tuple[FeatureSet, np.ndarray]:
    """Cells lie on a ring of two shape columns, which no line tells apart; a learned one tells a little."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 5)).astype(np.float32)
    is_cell = np.abs(np.hypot(x[:, 3], x[:, 4]) - 1) < 0.4
    x[:, 0] += 1.5 * is_cell
    groups = np.repeat(["a", "b", "c"], n // 3)
    blocks = {"mae": slice(0, 3), "shape": slice(3, 5)}
    made = {"mae": Provenance("base", "a" * 64, {}), "shape": Provenance("shape features", "", {})}
    return FeatureSet(x, blocks, groups, made), is_cell


def test_trees_as_tensors_say_what_scikit_learn_says():
    random = np.random.default_rng(3)
    x = random.normal(size=(500, 6)).astype(np.float32).round(1)  # ties with thresholds between
    is_cell = (x[:, 0] * x[:, 1] > 0.1) | (x[:, 2] > 1)
    net = boosted_trees.grow_trees(x, is_cell, balanced=False, seed=0)
    grown = HistGradientBoostingClassifier(
        learning_rate=0.06, max_iter=30, max_leaf_nodes=15, min_samples_leaf=20, l2_regularization=1.0,
        max_features=0.5, early_stopping=False, random_state=0,
    ).fit(x, is_cell)  # fmt: skip
    asked = np.concatenate([x, random.normal(size=(300, 6)).astype(np.float32)])
    np.testing.assert_allclose(net(torch.from_numpy(asked)), grown.decision_function(asked), atol=1e-5)
    assert net(torch.empty(0, 6)).shape == (0,)


@pytest.mark.parametrize("model", ["trees", "blend"])
def test_a_head_with_trees_comes_back_from_its_folder(tmp_path, model):
    features, is_cell = ring()
    refiner = Refiner(model=model).fit(features, is_cell)
    refiner.save(tmp_path / "refiner")
    again = Refiner.load(tmp_path / "refiner")
    assert np.array_equal(again.predict_proba(features), refiner.predict_proba(features))
    kinds = [(part.kind, part.blocks) for part in read_config(tmp_path / "refiner").parts]
    learned = [("logistic", ["mae"]), ("trees", ["shape"])]
    assert kinds == (learned if model == "blend" else [("trees", ["mae", "shape"])])
    assert again.save(tmp_path / "twice") == again.sha256_


def test_a_blend_is_better_than_either_of_its_models():
    features, is_cell = ring()

    def held_out(refiner: Refiner, of: FeatureSet) -> float:
        return refiner.fit(of, is_cell).cross_validation_["pooled"]["auc"]

    blend = held_out(Refiner(model="blend"), features)
    assert blend > held_out(Refiner(), features) + 0.1
    assert blend > held_out(Refiner(model="trees"), features.only("shape")) + 0.005


def test_a_part_that_says_nothing_spoils_nothing():
    random = np.random.default_rng(1)
    is_cell = np.arange(400) % 2 == 0
    knows, noise = is_cell * 2.0 + random.normal(size=400), random.normal(size=400)
    both, groups = np.stack([knows, noise]), np.full(400, "a")
    found = mean_auc(choose_blend(both, is_cell, groups)(both), is_cell, groups)
    assert found > mean_auc(knows, is_cell, groups) - 0.005
    even = mean_auc(both.mean(axis=0), is_cell, groups)
    assert found > even + 0.02


def test_a_blend_never_ranks_worse_than_the_own_score_within_brains():
    random = np.random.default_rng(2)
    groups = np.repeat(["a", "b", "c", "d"], 100)
    is_cell = random.random(400) < np.repeat([0.9, 0.9, 0.1, 0.1], 100)
    # It knows brains, hence has the lesser log loss; the own score ranks better inside each.
    other = np.repeat([3.0, 3.0, -3.0, -3.0], 100) + 0.5 * random.normal(size=400)
    own = 1.0 * is_cell + random.normal(size=400)
    both = np.stack([other, own])
    chosen = choose_blend(both, is_cell, groups, own=1)
    assert mean_auc(chosen(both), is_cell, groups) >= mean_auc(own, is_cell, groups)
    assert choose_blend(both, is_cell, groups).weight[0] > chosen.weight[0]
    assert auc(is_cell, chosen(both)) is not None


def test_heads_that_are_unknown_are_refused():
    with pytest.raises(BadInput, match="give one of logistic, mlp, trees, blend"):
        Refiner(model="forest").fit(*ring())
