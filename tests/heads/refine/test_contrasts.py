"""Refiners that learn from brains seen at other contrasts."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from canvas_fm.data.volume.window import DEFAULT_RULE
from canvas_fm.errors import BadInput, CanvasError, ModelMismatch
from canvas_fm.evaluation.metrics.classification import best_f1
from canvas_fm.heads.compare.baselines import Embedded
from canvas_fm.heads.compare.methods import training
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_set import FeatureSet
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.labels.group_folds import grouped_folds
from canvas_fm.heads.refine.fit.cross_fit import cross_fitted_decisions, folds_of, held_out_logits
from canvas_fm.heads.refine.fit.fit import fit_labelled, training_set
from canvas_fm.heads.refine.fit.training_set import LabelledFeatures
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.training.finetune.finetune import Tuning
from canvas_fm.viewing.report.report import report
from canvas_fm.viewing.report.report_flags import ReportOptions
from tests.heads.made_up import cells


@pytest.fixture(scope="module")
def extractor(encoder, detector) -> Extractor:
    return Extractor(encoder=encoder, detector=detector, detector_score=True, device="cpu")


def labelled(pairs):
    return label_brains([volume for volume, _ in pairs], [points for _, points in pairs], labels="label")


def test_a_volume_at_another_contrast_is_brighter_by_it(brains):
    volume = brains[0][0]
    low, high = volume.window
    for contrast in (0.5, 2.0):
        other = volume.at_contrast(contrast)
        values = np.linspace(low - 50, high + 50, 99)
        np.testing.assert_allclose(
            other.window_by(DEFAULT_RULE).apply(values),
            np.clip(contrast * (values - low) / (high - low), 0, 1), atol=1e-5,
        )  # fmt: skip
        assert pickle.loads(pickle.dumps(other)).window == other.window
        assert other.at_contrast(1 / contrast).window == pytest.approx(volume.window)
    assert volume.window == (low, high)
    assert volume.at_contrast(1).window == volume.window
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(CanvasError, match=r"contrast is .*; give a number above 0"):
            volume.at_contrast(wrong)
    assert repr(volume.at_contrast(2)).endswith(", contrast=2)")
    assert "contrast" not in repr(volume.at_contrast(2).at_contrast(0.5))


@pytest.mark.parametrize("contrast", [1e30, 1e300, 1e-320])
def test_a_contrast_that_leaves_no_window_is_refused(brains, contrast):
    with pytest.raises(CanvasError, match=r"at contrast .* the window .* would be"):
        brains[0][0].at_contrast(contrast).window  # noqa: B018


def test_what_is_kept_knows_at_which_contrast_the_background_was_seen(brains, detector):
    volume, background = brains[0][0], brains[1][0]
    extractor = Extractor(detector=detector)
    identities = [extractor.identity(volume, background.at_contrast(contrast)) for contrast in (1, 1, 2)]
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.usefixtures("undrawn")
def test_a_report_says_what_was_fitted_at_them(shape_volumes, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "canvas_fm.viewing.report.methods.Tuning", functools.partial(Tuning, least_steps=2, most_steps=2)
    )
    volumes, tables, truth = map(list, zip(*shape_volumes[:2], strict=True))
    options = {"tolerance_um": 6.0, "seeds": 1, "counts": (), "show": False, "encoders": [encoder.path]}
    settings = ReportOptions(device="cpu", C=0.01, augment_contrast=(2.0,))
    with pytest.raises(CanvasError, match=r"contrasts are for heads on features: .* encoder or random"):
        report(
            volumes,
            tables,
            truth,
            tmp_path / "r",
            **settings.explicit,
            methods=["shape", "finetune"],
            **options,
        )
    summary = report(
        volumes,
        tables,
        truth,
        tmp_path / "r",
        **settings.explicit,
        methods=["encoder", "finetune"],
        **options,
    )
    assert summary["about"]["fitted at contrasts"] == "1, 2; the fine-tuned at 1 alone"


def test_features_at_a_contrast_are_those_of_the_volume_stained_so(brains, extractor):
    volume, points = brains[0]
    copies = training_set(
        labelled(brains[:1]), extractor, augment_contrast=[1, 3, 3], show=False
    ).contrast_augmented
    assert len(copies) == 1
    assert np.array_equal(copies[0].x, extractor.features(volume.at_contrast(3), points.zyx, show=False).x)
    assert not np.allclose(copies[0].x, extractor.features(volume, points.zyx, show=False).x, atol=1e-3)


def bright(features: FeatureSet, shift: float) -> FeatureSet:
    x = features.x.copy()
    x[:, 2] += shift
    return FeatureSet(x, features.blocks, features.groups, features.provenance)


def test_a_model_that_saw_copies_leans_less_on_what_changes_in_them():
    features, is_cell = cells()
    copies = [bright(features, -3), bright(features, 3)]
    plain = Refiner(C=0.01).fit(features, is_cell)
    robust = Refiner(C=0.01).fit(features, is_cell, contrast_augmented=copies)

    def right(refiner: Refiner) -> float:
        return np.mean([refiner.score(copy, is_cell) for copy in copies])

    assert right(robust) > right(plain) + 0.05
    # The figures are of the candidates as they are, each once.
    assert robust.cross_validation_["pooled"]["candidates"] == len(is_cell)
    assert robust.cross_validation_["pooled"]["auc"] > 0.8
    labels = np.where(np.arange(len(is_cell)) % 5, is_cell, -1)
    some = Refiner(C=0.01).fit(features, labels, contrast_augmented=copies)
    kept = labels >= 0
    same = Refiner(C=0.01).fit(
        features.rows(kept), labels[kept], contrast_augmented=[c.rows(kept) for c in copies]
    )
    assert np.array_equal(some.logits(features), same.logits(features))
    assert some.threshold_ == same.threshold_


def test_the_threshold_has_to_do_for_the_copies_too():
    features, is_cell = cells()
    copy = bright(features, -1)
    missed = {"brain 0": 400}
    refiner = Refiner(C=0.01, calibration="none").fit(
        features, is_cell, contrast_augmented=[copy], missed=missed
    )
    rows = refiner.prepare(features, is_cell, contrast_augmented=[copy], missed=missed)
    held_out = held_out_logits(refiner.head_settings, rows, folds_of(refiner.head_settings, rows))[1]
    assert held_out.shape == (2, len(is_cell))
    p = 1 / (1 + np.exp(-held_out))
    both = np.tile(is_cell, 2)
    assert refiner.threshold_ == pytest.approx(best_f1(both, p.ravel(), missed=800)[0])
    assert refiner.threshold_ != pytest.approx(best_f1(is_cell, p[0], missed=400)[0])
    assert refiner.threshold_ != pytest.approx(best_f1(both, p.ravel(), missed=400)[0])


def test_the_model_of_each_fold_saw_the_copies_of_the_others():
    features, is_cell = cells()
    refiner, copies = Refiner(C=0.01), [bright(features, -3), bright(features, 3)]
    rows = refiner.prepare(features, is_cell, contrast_augmented=copies)
    folds = folds_of(refiner.head_settings, rows)
    held_out = held_out_logits(refiner.head_settings, rows, folds)[1]
    for train, test in folds:
        x = np.concatenate([each.x[train] for each in (features, *copies)])
        affine = StandardScaler().fit(x)
        model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000)
        model.fit(affine.transform(x), np.tile(is_cell[train], 3))
        for logits, each in zip(held_out, (features, *copies), strict=True):
            wanted = model.decision_function(affine.transform(each.x[test]))
            np.testing.assert_allclose(logits[test], wanted, atol=1e-2)


def test_neither_threshold_nor_model_of_a_fold_know_its_labels_in_the_copies():
    features, is_cell = cells()
    folds = grouped_folds(features.groups, is_cell, folds=4)
    turned = np.where(folds.fold == 1, ~is_cell, is_cell)
    copy = bright(features, 1).x
    refiner = Refiner()
    refiner.prepare(features, is_cell)
    outcomes = []
    for labels in (is_cell, turned):
        rows = LabelledFeatures(features.x, labels, features.groups, None, {}, True, (copy,))
        logits = np.stack([features.x[:, 2], copy[:, 2]]).astype(np.float64)
        p_cell, kept = cross_fitted_decisions(refiner.head_settings, rows, folds, logits)
        outcomes.append((p_cell[folds.fold == 1], kept[folds.fold == 1]))
    assert np.array_equal(outcomes[0][0], outcomes[1][0])
    assert np.array_equal(outcomes[0][1], outcomes[1][1])


def test_every_copy_is_corrected_by_itself():
    features, is_cell = cells()
    copy = bright(features, 5)
    with_copy = Refiner(C=0.01, correction="centre").fit(features, is_cell, contrast_augmented=[copy])
    twice = Refiner(C=0.01, correction="centre").fit(features, is_cell, contrast_augmented=[features])
    np.testing.assert_allclose(with_copy.logits(features), twice.logits(features), atol=1e-4)


def test_a_comparison_fits_on_copies_and_knows_them(pooled):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(pooled), 4)).astype(np.float32)
    x[:, 0] += 2 * pooled.is_cell
    features = FeatureSet(x, {"mae": slice(0, 4)}, pooled.group)
    dimmer = FeatureSet(x - np.float32([4, 0, 0, 0]), {"mae": slice(0, 4)}, pooled.group)
    rows, scored = pooled.labelled(["a", "b"]), pooled.labelled(["c"])
    predictions, identities = [], []
    for copies in ((), [dict.fromkeys("abc", dimmer)]):
        method = Embedded(
            "m", dict.fromkeys("abc", features), contrast_augmented=copies, refiner=lambda s: Refiner("mae")
        )
        predictions.append(method.fit(training(pooled, rows, rows, "c", 0)).predict(scored))
        identities.append(method.identity("c"))
    assert not np.allclose(predictions[0], predictions[1])
    assert identities[0] != identities[1]


@pytest.mark.parametrize(
    ("copy", "kind", "message"),
    [
        (lambda f: f.rows(np.arange(9)), BadInput, "a copy has 9 rows; expected 480"),
        (lambda f: f.only("mae"), ModelMismatch, "a copy's features have other blocks or models"),
        (lambda f: f.x[:9], BadInput, "a copy has 9 rows; expected 480"),
        (lambda f: np.where(f.x > 0, f.x, np.nan), BadInput, "NaN or infinite"),
    ],
)
def test_copies_of_something_else_are_refused(copy, kind, message):
    features, is_cell = cells()
    with pytest.raises(kind, match=message):
        Refiner(C=0.01).fit(features, is_cell, contrast_augmented=[copy(features)])


def test_a_copy_may_bring_its_blocks_where_the_rows_do_not():
    features, is_cell = cells()
    fits = [
        Refiner(C=0.01).fit(features.x, is_cell, groups=features.groups, contrast_augmented=[copy])
        for copy in (bright(features, 5), bright(features, 5).x)
    ]
    assert np.array_equal(fits[0].logits(features.x), fits[1].logits(features.x))


@pytest.mark.parametrize("contrast", [0, -0.5, float("nan"), float("inf")])
def test_a_contrast_that_is_none_is_refused_before_any_work(
    brains, extractor, tmp_path, monkeypatch, contrast
):
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    with pytest.raises(BadInput, match=r"contrast is .*; give numbers above 0"):
        fit_labelled(
            Refiner(), labelled(brains), extractor, tmp_path / "refiner", augment_contrast=[contrast]
        )
