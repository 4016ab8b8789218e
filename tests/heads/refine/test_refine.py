"""The refiner: scikit-learn's manners, blocks and cuts, brains that stay apart, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import canvas_fm as cf
from canvas_fm.errors import BadInput
from canvas_fm.heads.features.feature_set import FeatureSet
from canvas_fm.heads.labels.group_folds import grouped_folds
from canvas_fm.heads.refine.fit.cross_fit import cross_fitted_decisions
from canvas_fm.heads.refine.fit.training_set import LabelledFeatures
from canvas_fm.heads.refine.refiner import Refiner
from tests.heads.made_up import BLOCKS, MADE, cells, p_cell

ROOT = Path(__file__).parents[3]


def test_the_public_face(data):
    features, is_cell = data
    blocks = {"detector": slice(0, 10), "mae": slice(10, 30)}
    refiner = cf.Refiner(variant="concat", blocks=blocks, cut="mae", ratio=0.4, C=0.01)
    assert refiner.fit(features, is_cell) is refiner
    assert refiner.columns_.width == 10 + 8
    assert refiner.score(features, is_cell) > 0.85
    assert set(refiner.cross_validation_["brains"]) == {f"brain {number}" for number in range(4)}


CHECKS = """
import json, logging, sys, warnings
from sklearn.utils.estimator_checks import check_estimator
from canvas_fm.heads.refine.refiner import Refiner
warnings.simplefilter("ignore")
logging.disable()
# Its labels include -1, and `predict` has to be what is more probable than not.
refiner = Refiner(unlabelled=None, threshold=0.5, folds=2, **json.loads(sys.argv[1]))
print(json.dumps([(one["check_name"], one["status"]) for one in check_estimator(refiner, on_fail=None)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"model": "mlp", "epochs": 100}, {"calibration": "isotonic"}])
def test_scikit_learns_own_checks(settings):
    """In a process of its own: one check gives `__init__` nonsense, which the types executed here refuse."""
    words = [sys.executable, "-c", CHECKS, json.dumps(settings)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=280, check=True)
    results = json.loads(done.stdout)
    assert [name for name, status in results if status == "failed"] == []
    assert sum(status == "passed" for _, status in results) > 45


def test_it_works_in_a_pipeline_and_can_be_cloned(data):
    features, is_cell = data
    pipeline = make_pipeline(StandardScaler(), Refiner(C=0.01))
    pipeline.fit(features.x, is_cell, refiner__groups=features.groups)
    assert pipeline.score(features.x, is_cell) > 0.85
    other = clone(Refiner(cut="mae", ratio=0.4, blocks=BLOCKS)).set_params(variant="mae")
    assert other.get_params()["variant"] == "mae"
    assert other.get_params()["blocks"] == BLOCKS


def test_a_grid_search_over_ratio_and_cut_holds_brains_out(data):
    """Groups reach the splits of the search and, by scikit-learn's routing, the folds inside the refiner."""
    features, is_cell = data
    grid = {"ratio": [0.2, 0.5], "cut": ["mae", "detector"]}
    with config_context(enable_metadata_routing=True):
        refiner = Refiner(blocks=BLOCKS, C=0.01).set_fit_request(groups=True)
        search = GridSearchCV(refiner, grid, cv=GroupKFold(2), scoring="roc_auc", error_score="raise")
        search.fit(features.x, is_cell, groups=features.groups)
    assert search.best_estimator_.split_ == "brain"
    # Column 2 of each block tells cells: of 10 columns .2 loses it, of 20 it keeps it.
    found = search.cv_results_
    scores = {
        (one["cut"], one["ratio"]): score
        for one, score in zip(found["params"], found["mean_test_score"], strict=True)
    }
    assert scores["detector", 0.2] < min(scores["mae", 0.2], scores["detector", 0.5]) - 0.02
    assert search.predict(features.x).shape == is_cell.shape


def test_each_variant_sees_its_own_block_alone(data):
    features, is_cell = data
    for variant, other in (("detector", "mae"), ("mae", "detector")):
        refiner = Refiner(variant=variant, C=0.01).fit(features, is_cell)
        changed = features.x.copy()
        changed[:, BLOCKS[other]] = 99
        assert np.array_equal(p_cell(refiner, features), p_cell(refiner, changed))
    both = Refiner(C=0.01).fit(features, is_cell).cross_validation_["pooled"]["auc"]
    assert both > refiner.cross_validation_["pooled"]["auc"] + 0.03


def test_the_ratio_keeps_the_first_columns_of_the_cut_block(data):
    features, is_cell = data
    refiner = Refiner(cut="mae", ratio=0.4, C=0.01).fit(features, is_cell)
    beyond, within = features.x.copy(), features.x.copy()
    beyond[:, 18:] = 99
    within[:, 17] += 1
    assert np.array_equal(p_cell(refiner, features), p_cell(refiner, beyond))
    assert not np.array_equal(p_cell(refiner, features), p_cell(refiner, within))
    x = np.zeros((40, 768), np.float32)
    x[:20, 0] = 1
    paper = {"detector": slice(0, 384), "mae": slice(384, 768)}
    many = Refiner(blocks=paper, cut="mae", ratio=0.4, folds=2).fit(x, np.arange(40) < 20)
    assert many.columns_.width == 384 + 154


def test_components_are_those_of_scikit_learn_and_of_training_rows_alone(data):
    features, is_cell = data
    refiner = Refiner(variant="mae", ratio=0.25, reduce="pca", C=1.0, calibration="none").fit(
        features, is_cell
    )

    reduced = PCA(5, svd_solver="full").fit_transform(features.block("mae"))
    scale = np.sqrt(reduced.var(axis=0).mean())
    oracle = LogisticRegression(C=1.0, class_weight="balanced").fit(reduced / scale, is_cell)
    wanted = oracle.decision_function(reduced / scale)
    assert np.allclose(refiner.logits(features), wanted, atol=2e-3)


@pytest.mark.parametrize("settings", [{}, {"whiten": True}, {"model": "mlp", "epochs": 1, "folds": 2}])
def test_what_is_judged_tells_nothing_to_the_scaling(data, settings):
    features, is_cell = data
    refiner = Refiner(C=0.01, **settings).fit(features, is_cell)
    alone = np.concatenate([p_cell(refiner, features.x[row : row + 1]) for row in range(8)])
    assert np.allclose(alone, p_cell(refiner, features)[:8], atol=1e-6)


def test_whitening_undoes_any_mixing_of_the_columns(data):
    features, is_cell = data
    mixing = np.random.default_rng(5).normal(size=(30, 30)).astype(np.float32)
    plain = Refiner(whiten=True, C=0.01).fit(features, is_cell)
    mixed = FeatureSet(features.x @ mixing, BLOCKS, features.groups)
    other = Refiner(whiten=True, C=0.01).fit(mixed, is_cell)
    assert np.corrcoef(plain.logits(features), other.logits(mixed))[0, 1] > 0.98


def test_a_brain_that_is_brighter_is_judged_the_same_after_its_correction(data):
    features, is_cell = data
    refiner = Refiner(correction="standardise", C=0.01).fit(features, is_cell)
    brighter = FeatureSet(features.x * 3 + 5, BLOCKS, features.groups, MADE)
    assert np.allclose(p_cell(refiner, features), p_cell(refiner, brighter), atol=1e-4)
    assert not np.allclose(
        p_cell(Refiner(C=0.01).fit(features, is_cell), brighter), p_cell(refiner, brighter)
    )


def test_the_figures_of_a_brain_do_not_know_its_own_labels():
    """No leak: turning one brain's labels round changes nothing in how its rows are scored, but the AUC."""
    features, is_cell = cells()
    turned = np.where(features.groups == "brain 2", ~is_cell, is_cell)
    settings = {"C": 0.01, "calibration": "none"}
    one = Refiner(**settings).fit(features, is_cell).cross_validation_["brains"]["brain 2"]
    two = Refiner(**settings).fit(features, turned).cross_validation_["brains"]["brain 2"]
    assert one["auc"] == pytest.approx(1 - two["auc"])
    assert one["count"]["value"] == pytest.approx(two["count"]["value"])


def test_neither_calibration_nor_threshold_of_a_fold_know_its_labels():
    features, is_cell = cells()
    folds = grouped_folds(features.groups, is_cell, folds=4)
    logits = features.x[:, 2].astype(np.float64)
    turned = np.where(folds.fold == 1, ~is_cell, is_cell)
    refiner = Refiner()
    refiner.prepare(features, is_cell)
    outcomes = []
    for labels in (is_cell, turned):
        rows = LabelledFeatures(features.x, labels, features.groups, None, {}, True)
        p_cell, kept = cross_fitted_decisions(refiner.head_settings, rows, folds, logits[None])
        outcomes.append((p_cell[folds.fold == 1], kept[folds.fold == 1], p_cell[folds.fold == 0]))
    assert np.array_equal(outcomes[0][0], outcomes[1][0])
    assert np.array_equal(outcomes[0][1], outcomes[1][1])
    assert not np.allclose(outcomes[0][2], outcomes[1][2])


def test_a_brain_is_corrected_by_its_unlabelled_candidates_too(data):
    features, is_cell = data
    labels = np.where(features.x[:, 12] > 1, -1, is_cell.astype(int))
    refiner = Refiner(C=0.01, correction="centre").fit(features, labels)
    assert np.allclose(
        refiner.net_.mean.numpy(), features.corrected("centre").x[labels >= 0].mean(0), atol=1e-5
    )


def test_labels_of_minus_one_are_skipped_and_counted(data):
    features, is_cell = data
    labels = is_cell.astype(int)
    labels[::5] = -1
    refiner = Refiner(C=0.01).fit(features, labels)
    assert refiner.skipped_ == 96
    kept = labels >= 0
    same = Refiner(C=0.01).fit(features.rows(kept), is_cell[kept])
    assert np.allclose(p_cell(refiner, features), p_cell(same, features))
    assert refiner.score(features, labels) == pytest.approx(refiner.score(features.rows(kept), is_cell[kept]))


def test_missed_cells_lower_the_ceiling_and_the_threshold(data):
    features, is_cell = data
    assert Refiner(C=0.01).fit(features, is_cell).cross_validation_["pooled"]["f1_ceiling"] is None
    none = Refiner(C=0.01).fit(features, is_cell, missed={f"brain {number}": 0 for number in range(4)})
    missed = {f"brain {number}": 200 for number in range(4)}
    many = Refiner(C=0.01).fit(features, is_cell, missed=missed)
    assert none.cross_validation_["pooled"]["f1_ceiling"] == 1.0
    recall = is_cell.sum() / (is_cell.sum() + 800)
    figures = many.cross_validation_["pooled"]
    assert figures["f1_ceiling"] == pytest.approx(2 * recall / (1 + recall))
    assert figures["f1_unrefined"] < figures["f1"] < figures["f1_ceiling"]
    assert many.threshold_ < none.threshold_


def test_few_cells_among_many_candidates():
    features, is_cell = cells(n=400)
    labels = np.where(is_cell & (np.arange(len(is_cell)) % 8 > 0), -1, is_cell.astype(int))
    for model, auc in (("logistic", 0.9), ("mlp", 0.85)):
        refiner = Refiner(model=model, C=0.01, epochs=1, folds=2).fit(features, labels)
        figures = refiner.cross_validation_["pooled"]
        assert figures["auc"] > auc
        assert figures["calibration_error"] < 0.05
        assert figures["count"]["value"] == pytest.approx(figures["cells"], rel=0.25)


def test_the_same_seed_gives_the_same_net(data):
    features, is_cell = data
    settings = {"model": "mlp", "epochs": 1, "folds": 2, "random_state": 4}
    one, two = (Refiner(**settings).fit(features, is_cell) for _ in range(2))
    assert np.array_equal(p_cell(one, features), p_cell(two, features))
    other = Refiner(**settings | {"random_state": 5}).fit(features, is_cell)
    assert not np.array_equal(p_cell(one, features), p_cell(other, features))


def test_blocks_are_found_by_name_wherever_they_stand(data, fitted):
    features, _ = data
    turned = np.concatenate([features.block("mae"), features.block("detector")], axis=1)
    blocks = {"mae": slice(0, 20), "detector": slice(20, 30)}
    there = FeatureSet(turned, blocks, features.groups, MADE)
    assert np.array_equal(p_cell(fitted, there), p_cell(fitted, features))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "lab"}, "variant is 'lab'; give concat"),
        ({"ratio": 0.4}, "say which block it cuts"),
        ({"ratio": 0.0, "cut": "mae"}, "ratio is 0.0"),
        ({"ratio": 1.2, "cut": "mae"}, "ratio is 1.2"),
        ({"ratio": 0.01, "cut": "mae"}, "is none"),
        ({"variant": "detector", "cut": "mae"}, "cut is 'mae'"),
        ({"reduce": "svd"}, "reduce is 'svd'"),
        ({"correction": "log"}, "correction is 'log'"),
        ({"model": "forest"}, "model is 'forest'"),
        ({"calibration": "beta"}, "calibration is 'beta'"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"blocks": {"mae": slice(0, 30)}}, "leave them out"),
    ],
)
def test_settings_that_make_no_sense(data, settings, message):
    with pytest.raises(BadInput, match=message):
        Refiner(**{"C": 0.01} | settings).fit(*data)


def test_labels_that_nothing_can_be_learned_from(data):
    features, _ = data
    for label in (0, 1):
        with pytest.raises(BadInput, match=f"all 480 labels are {label} .* one class only"):
            Refiner().fit(features, np.full(len(features), label))
    with pytest.raises(BadInput, match="none of the 480 rows carries a label"):
        Refiner().fit(features, np.full(len(features), -1))
    few = np.full(len(features), -1)
    few[:4], few[200:204] = [1, 0, 1, 0], [1, 0, 1, 0]
    with pytest.raises(BadInput, match="4 cells and 4 non-cells are labelled, fewer than 5 folds"):
        Refiner().fit(features, few)
    with pytest.raises(BadInput, match="multiclass"):
        Refiner().fit(features, np.arange(len(features)) % 3)
    with pytest.raises(BadInput, match=r"labels have shape \(3,\)"):
        Refiner().fit(features, [1, 0, 1])


def test_nan_features_are_refused_when_fitted_and_when_judged(data, fitted):
    features, is_cell = data
    bad = features.x.copy()
    bad[7, 12] = np.nan
    for action in (lambda: Refiner(blocks=BLOCKS).fit(bad, is_cell), lambda: fitted.predict_proba(bad)):
        with pytest.raises(BadInput, match=r"1 of 480 rows, first in row 8, column 13 \(block 'mae'\)"):
            action()


def test_one_brain_alone_needs_regions_or_force():
    features, is_cell = cells(brains=1, n=200)
    with pytest.raises(BadInput, match="one brain"):
        Refiner(C=0.01).fit(features, is_cell)
    by_region = Refiner(C=0.01).fit(features, is_cell, regions=np.arange(200) // 40)
    assert by_region.split_ == "region"
    assert "one brain only" in by_region.split_warning_
    assert by_region.count_spread_.regions == 5
    forced = Refiner(C=0.01, force_random=True).fit(features, is_cell)
    assert forced.split_ == "random"
    assert "forced" in forced.cross_validation_["warning"]


def test_two_unlike_brains_are_calibrated_by_their_regions_where_that_is_asked_for():
    """The second brain's features stand elsewhere: what knows only one brain is at a loss in the other."""
    features, is_cell = cells(brains=2, n=400)
    second = features.groups == np.unique(features.groups)[1]
    x = features.x + 4 * second[:, None] * np.linspace(-1, 1, features.x.shape[1], dtype=np.float32)
    moved = FeatureSet(x.astype(np.float32), features.blocks, features.groups, features.provenance)
    regions = np.arange(len(x)) % 4
    by_brain = Refiner(C=0.1).fit(moved, is_cell, regions=regions)
    by_region = Refiner(C=0.1, hold_out="regions").fit(moved, is_cell, regions=regions)
    assert (by_brain.split_, by_region.split_) == ("brain", "region")
    assert by_region.cross_validation_["folds"] > 2
    errors = [one.cross_validation_["pooled"]["calibration_error"] for one in (by_brain, by_region)]
    assert errors[1] < errors[0]
    with pytest.raises(BadInput, match="no regions were given"):
        Refiner(hold_out="regions").fit(moved, is_cell)
    with pytest.raises(BadInput, match="give brains or regions"):
        Refiner(hold_out="cubes").fit(moved, is_cell)


def test_an_array_without_groups_is_marked(data, caplog):
    features, is_cell = data
    refiner = Refiner(C=0.01).fit(features.x, is_cell)
    assert refiner.split_ == "random"
    assert "no groups were given" in refiner.split_warning_
    assert "no groups were given" in caplog.text
