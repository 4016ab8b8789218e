"""Refiners that look at the detector's own heat, and that learn from brains seen at other contrasts."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from canvas_fm.data.points import Points
from canvas_fm.data.window import DEFAULT_RULE
from canvas_fm.errors import BadInput, CanvasError, ModelMismatch
from canvas_fm.evaluation.classification import best_f1
from canvas_fm.heads import refine_points
from canvas_fm.heads.baselines import Embedded
from canvas_fm.heads.candidates import label_brains
from canvas_fm.heads.extract import Extractor, kept_features
from canvas_fm.heads.features import FeatureSet
from canvas_fm.heads.fitting import Rows, carried
from canvas_fm.heads.methods import training
from canvas_fm.heads.refine import Refiner
from canvas_fm.heads.refine_fit import fit_refiner, training_set
from canvas_fm.heads.refine_points import refine
from canvas_fm.heads.splits import grouped_folds
from canvas_fm.inference.detect import detect
from canvas_fm.viewing.report import report
from canvas_fm.viewing.report_methods import Methods, Settings
from tests.heads.made_up import cells


@pytest.fixture(scope="module")
def extractor(encoder, detector) -> Extractor:
    return Extractor(encoder=encoder, detector=detector, heat=True, device="cpu")


@pytest.fixture
def models(encoder, detector):
    return {"encoder": encoder, "detector": detector, "device": "cpu", "show": False}


def labelled(pairs):
    return label_brains([volume for volume, _ in pairs], [points for _, points in pairs], labels="label")


def logit(p: np.ndarray) -> np.ndarray:
    return np.log((p + 1e-4) / (1 - p + 1e-4))


# --- the heat


def test_at_a_detection_it_is_the_score_that_it_was_found_with(brains, detector, extractor):
    volume = brains[0][0]
    found = detect(detector, volume, threshold=0.001, device="cpu", show=False)
    assert len(found) > 20
    heat = extractor.features(volume, found.zyx, show=False).block("heat")[:, 0]
    np.testing.assert_allclose(heat, logit(found.columns["score"]), atol=1e-4)
    # Beside its peak, as a candidate of another detector may lie, it is the peak's or a higher one's.
    inside = (found.zyx[:, 2] < volume.shape_zyx[2] - 1).nonzero()[0]
    beside = extractor.features(volume, found.zyx[inside] + (0, 0, 1), show=False).block("heat")[:, 0]
    assert (beside >= heat[inside] - 1e-4).all()


def test_it_stands_between_the_pooled_map_and_the_embedding(brains, encoder, detector, extractor):
    volume, points = brains[0]
    hot = extractor.features(volume, points.zyx, show=False)
    plain = Extractor(encoder, detector, device="cpu").features(volume, points.zyx, show=False)
    assert list(hot.blocks) == ["detector", "heat", "mae"]
    assert hot.made["heat"].sha256 == detector.sha256
    for block in ("detector", "mae"):
        assert np.array_equal(hot.block(block), plain.block(block))
    alone = hot.only("detector", "mae")
    assert np.array_equal(alone.x, plain.x)
    assert dict(alone.blocks) == dict(plain.blocks)
    with pytest.raises(BadInput, match="no block 'score'"):
        hot.only("mae", "score")


def test_kept_features_are_the_same_and_shared_with_those_without_it(
    brains, extractor, tmp_path, monkeypatch
):
    volume, points = brains[0]
    fresh = extractor.features(volume, points.zyx, show=False)
    kept = kept_features(extractor, volume, points.zyx, tmp_path, group=volume.name, show=False)
    assert np.array_equal(kept.x, fresh.x)
    assert list(kept.made) == ["detector", "heat", "mae"]
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    assert np.array_equal(kept_features(extractor, volume, points.zyx, tmp_path, group=volume.name).x, kept.x)
    cold = Extractor(extractor.encoder, extractor.detector, device="cpu")
    again = kept_features(cold, volume, points.zyx, tmp_path, group=volume.name)
    assert np.array_equal(again.x, kept.only("detector", "mae").x)


@pytest.mark.parametrize("variant", ["concat", "mae", "detector", "heat"])
def test_a_refiner_with_it_needs_points_alone(brains, extractor, models, tmp_path, monkeypatch, variant):
    out = tmp_path / "refiner"
    fit_refiner(
        Refiner(variant, C=0.01), labelled(brains[:2]), extractor, out, contrasts=[0.5, 1, 2], show=False
    )
    refiner = Refiner.load(out)
    assert "heat" in refiner.columns_.sizes
    assert json.loads((out / "report.json").read_text())["contrasts"] == [1.0, 0.5, 2.0]
    assert json.loads((out / "config.json").read_text())["provenance"]["contrasts"] == [1.0, 0.5, 2.0]
    volume, points = brains[2]
    if variant in ("detector", "heat"):
        models["encoder"] = None
    monkeypatch.setattr(refine_points, "BLOCK", 16)
    judged = refine(refiner, volume, Points(points.zyx), **models)
    features = training_set(labelled(brains[2:]), extractor, show=False).features
    np.testing.assert_allclose(judged.columns["p_cell"], refiner.predict_proba(features)[:, 1], atol=1e-5)
    assert judged.meta["refiner_detector_sha256"] == models["detector"].sha256


def test_what_does_not_go_with_it_is_refused(brains, encoder, extractor, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="heat is a detector's; give a detector"):
        Extractor(encoder=encoder, heat=True)
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    for settings, message in (
        ({"correction": "centre"}, "take the level of the detector's heat away; .* without the heat"),
        ({"cut": "heat", "ratio": 0.5}, "cut is 'heat'; variant 'concat' uses detector, mae"),
    ):
        with pytest.raises(BadInput, match=message):
            fit_refiner(Refiner(**settings), labelled(brains), extractor, tmp_path / "refiner")


def test_a_report_judges_it_alone_and_beside_features(shape_volumes, encoder, detector, tmp_path):
    volumes, tables, truth = map(list, zip(*shape_volumes[:2], strict=True))
    given = {"tolerance_um": 6.0, "seeds": 1, "counts": (), "show": False, "methods": ["encoder"]}
    both = {"encoders": [encoder.path], "detectors": [detector.path]}
    settings = Settings(device="cpu", heat=True, own_score=True, contrasts=(2.0,), keep=tmp_path / "kept")
    found = report(volumes, tables, truth, tmp_path / "report", settings=settings, **both, **given)
    assert list(found["methods"]) == [
        "detector", "mae", "concat", "detector's heat", "detector + heat", "mae + heat", "concat + heat",
        "concat + heat + own score",
    ]  # fmt: skip
    assert found["about"]["fitted at contrasts"] == "1, 2"
    assert found["about"]["heads on features"].startswith("logistic, C chosen on training volumes")
    with pytest.raises(CanvasError, match="heat is a detector's, beside features: give --detector"):
        report(
            volumes, tables, truth, tmp_path / "other", settings=settings, encoders=[encoder.path], **given
        )
    centred = Settings(device="cpu", heat=True, correction="centre")
    with pytest.raises(CanvasError, match="correction centre would take the level of the heat away"):
        report(volumes, tables, truth, tmp_path / "other", settings=centred, **both, **given)


def test_speed_is_measured_of_the_same_judgement(task, encoder, detector):
    folds = [part.name for part in task.parts]
    given = task, dict.fromkeys(folds, encoder), dict.fromkeys(folds, detector), folds
    methods = Methods(*given, Settings(device="cpu", heat=True, contrasts=(0.5,)), False).named("encoder")
    assert methods[-1].name == "concat + heat"
    rows, judged = task.labelled(["a", "b"]), task.labelled(["c"])[5:25]
    fit = methods[-1].fit(training(task, rows, rows, "c", 0))
    np.testing.assert_allclose(fit.judge(judged), fit.from_scratch(judged), atol=1e-5)


# --- other contrasts


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


def test_features_at_a_contrast_are_those_of_the_volume_stained_so(brains, extractor):
    volume, points = brains[0]
    copies = training_set(labelled(brains[:1]), extractor, contrasts=[1, 3, 3], show=False).copies
    assert len(copies) == 1
    assert np.array_equal(copies[0].x, extractor.features(volume.at_contrast(3), points.zyx, show=False).x)
    assert not np.allclose(copies[0].x, extractor.features(volume, points.zyx, show=False).x, atol=1e-3)


def bright(features: FeatureSet, shift: float) -> FeatureSet:
    x = features.x.copy()
    x[:, 2] += shift
    return FeatureSet(x, features.blocks, features.groups, features.made)


def test_a_model_that_saw_copies_leans_less_on_what_changes_in_them():
    features, is_cell = cells()
    copies = [bright(features, -3), bright(features, 3)]
    plain = Refiner(C=0.01).fit(features, is_cell)
    robust = Refiner(C=0.01).fit(features, is_cell, copies=copies)

    def right(refiner: Refiner) -> float:
        return np.mean([refiner.score(copy, is_cell) for copy in copies])

    assert right(robust) > right(plain) + 0.05
    # The figures are of the candidates as they are, each once.
    assert robust.cross_validation_["pooled"]["candidates"] == len(is_cell)
    assert robust.cross_validation_["pooled"]["auc"] > 0.8
    labels = np.where(np.arange(len(is_cell)) % 5, is_cell, -1)
    some = Refiner(C=0.01).fit(features, labels, copies=copies)
    kept = labels >= 0
    same = Refiner(C=0.01).fit(features.rows(kept), labels[kept], copies=[c.rows(kept) for c in copies])
    assert np.array_equal(some.logits(features), same.logits(features))
    assert some.threshold_ == same.threshold_


def test_the_threshold_has_to_do_for_the_copies_too():
    features, is_cell = cells()
    copy = bright(features, -1)
    refiner = Refiner(C=0.01, calibration="none").fit(
        features, is_cell, copies=[copy], missed={"brain 0": 30}
    )
    rows = refiner.prepare(features, is_cell, copies=[copy], missed={"brain 0": 30})
    from canvas_fm.heads.fitting import folds_of, held_out_logits

    held_out = held_out_logits(refiner, rows, folds_of(refiner, rows))[1]
    assert held_out.shape == (2, len(is_cell))
    p = 1 / (1 + np.exp(-held_out))
    best = best_f1(np.tile(is_cell, 2), p.ravel(), missed=60)[0]
    assert refiner.threshold_ == pytest.approx(best)
    assert refiner.threshold_ != pytest.approx(best_f1(is_cell, p[0], missed=30)[0])


def test_neither_threshold_nor_model_of_a_fold_know_its_labels_in_the_copies():
    features, is_cell = cells()
    folds = grouped_folds(features.groups, is_cell, folds=4)
    turned = np.where(folds.fold == 1, ~is_cell, is_cell)
    copy = bright(features, 1).x
    outcomes = []
    for labels in (is_cell, turned):
        rows = Rows(features.x, labels, features.groups, None, {}, True, (copy,))
        logits = np.stack([features.x[:, 2], copy[:, 2]]).astype(np.float64)
        p_cell, kept = carried(Refiner(), rows, folds, logits)
        outcomes.append((p_cell[folds.fold == 1], kept[folds.fold == 1]))
    assert np.array_equal(outcomes[0][0], outcomes[1][0])
    assert np.array_equal(outcomes[0][1], outcomes[1][1])


def test_every_copy_is_corrected_by_itself():
    features, is_cell = cells()
    copy = bright(features, 5)
    with_copy = Refiner(C=0.01, correction="centre").fit(features, is_cell, copies=[copy])
    twice = Refiner(C=0.01, correction="centre").fit(features, is_cell, copies=[features])
    np.testing.assert_allclose(with_copy.logits(features), twice.logits(features), atol=1e-4)


def test_a_comparison_fits_on_copies_and_knows_them(task):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(task), 4)).astype(np.float32)
    x[:, 0] += 2 * task.is_cell
    features = FeatureSet(x, {"mae": slice(0, 4)}, task.group)
    dimmer = FeatureSet(x - np.float32([4, 0, 0, 0]), {"mae": slice(0, 4)}, task.group)
    rows, judged = task.labelled(["a", "b"]), task.labelled(["c"])
    said, told = [], []
    for copies in ((), [dict.fromkeys("abc", dimmer)]):
        method = Embedded(
            "m", dict.fromkeys("abc", features), copies=copies, refiner=lambda s: Refiner("mae")
        )
        said.append(method.fit(training(task, rows, rows, "c", 0)).judge(judged))
        told.append(method.identity("c"))
    assert not np.allclose(said[0], said[1])
    assert told[0] != told[1]


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
        Refiner(C=0.01).fit(features, is_cell, copies=[copy(features)])


@pytest.mark.parametrize("contrast", [0, -0.5, float("nan"), float("inf")])
def test_a_contrast_that_is_none_is_refused_before_any_work(
    brains, extractor, tmp_path, monkeypatch, contrast
):
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    with pytest.raises(BadInput, match=r"contrast is .*; give numbers above 0"):
        fit_refiner(Refiner(), labelled(brains), extractor, tmp_path / "refiner", contrasts=[contrast])
