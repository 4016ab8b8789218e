"""A refiner that also looks at the candidates' own score: what that gives, what it needs, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import BadInput, CanvasError, ModelMismatch
from canvas_fm.heads.compare.methods import training
from canvas_fm.heads.features.candidate_score import candidate_scores, with_candidate_score
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_set import FeatureSet
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.apply import candidate_classifier
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.fit.fit import fit_labelled, training_set
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.viewing.info.models import describe_model
from canvas_fm.viewing.report.methods import Methods
from canvas_fm.viewing.report.report import report
from canvas_fm.viewing.report.report_flags import ReportOptions


def with_scores(points: Points, seed: int = 0, column: str = "score", **meta: str) -> Points:
    """The same candidates with a score that is higher for most cells."""
    random = np.random.default_rng(seed)
    score = np.exp(random.normal(0, 0.4, len(points)) + 1.2 * points.columns["label"] - 2)
    return Points(points.zyx, points.columns | {column: score}, points.meta | meta)


@pytest.fixture(scope="module")
def scored(brains):
    return [(volume, with_scores(points, seed)) for seed, (volume, points) in enumerate(brains)]


@pytest.fixture(scope="module")
def extractor(encoder, detector) -> Extractor:
    return Extractor(encoder=encoder, detector=detector, device="cpu")


def labelled(pairs, **settings):
    return label_brains([volume for volume, _ in pairs], [p for _, p in pairs], labels="label", **settings)


@pytest.fixture(scope="module")
def folder(scored, extractor, tmp_path_factory):
    """A refiner of volumes `a` and `b` that looks at the score, for candidates of `c`."""
    out = tmp_path_factory.mktemp("refiners") / "refiner"
    fit_labelled(Refiner(C=0.01), labelled(scored[:2]), extractor, out, candidate_score=True, show=False)
    return out


@pytest.fixture
def models(encoder, detector):
    return {"encoder": encoder, "detector": detector, "device": "cpu", "show": False}


def noise(n: int, seed: int) -> tuple[FeatureSet, np.ndarray]:
    """Columns that say nothing, and beside them a score that tells everything."""
    random = np.random.default_rng(seed)
    is_cell = np.arange(n) % 2 == 1
    x = random.normal(size=(n, 301)).astype(np.float32)
    x[:, 300] = is_cell + random.normal(0, 0.05, n)
    groups = np.array(["a", "b"])[np.arange(n) // 2 % 2]
    return FeatureSet(x, {"mae": slice(0, 300), "score": slice(300, 301)}, groups), is_cell


@pytest.mark.parametrize(
    "settings",
    [
        {"C": 1e-4},
        {"C": 1e-4, "whiten": True},
        pytest.param({"model": "mlp"}, marks=pytest.mark.slow),
        {"C": 1e-4, "cut": "mae", "ratio": 0.9, "reduce": "pca"},
    ],
)
def test_twenty_labels_suffice_for_a_score_that_tells_all(settings):
    few, (many, is_cell) = noise(20, 0), noise(400, 1)
    for variant in ("concat", "mae") if len(settings) == 1 else ("mae",):
        refiner = Refiner(variant, folds=2, **settings).fit(*few)
        assert (refiner.predict(many) == is_cell).mean() > 0.95
    # The same numbers in a block of any other name are one column among many.
    plain = {"mae": slice(0, 300), "other": slice(300, 301)}
    refiner = Refiner(folds=2, **settings).fit(FeatureSet(few[0].x, plain, few[0].groups), few[1])
    assert (refiner.predict(FeatureSet(many.x, plain, many.groups)) == is_cell).mean() < 0.9


def test_the_score_goes_with_every_variant_and_is_never_cut():
    features, is_cell = noise(40, 0)
    assert Refiner("mae", ratio=0.5).fit(features, is_cell).columns_.width == 151
    with pytest.raises(BadInput, match="cut is 'score'; variant 'concat' uses mae"):
        Refiner(cut="score", ratio=0.5).fit(features, is_cell)


@pytest.mark.parametrize("correction", ["centre", "standardise", "whiten"])
def test_a_correction_would_take_its_level_away(scored, extractor, tmp_path, monkeypatch, correction):
    with pytest.raises(BadInput, match="take the level of the candidate score away"):
        Refiner(correction=correction).fit(*noise(40, 0))
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    with pytest.raises(BadInput, match="take the level of the candidate score away"):
        fit_labelled(
            Refiner(correction=correction),
            labelled(scored),
            extractor,
            tmp_path / "refiner",
            candidate_score=True,
        )


def test_without_the_option_scores_change_nothing(brains, scored, extractor, tmp_path):
    for name, pairs in {"without": brains[:2], "with": scored[:2]}.items():
        fit_labelled(Refiner(C=0.01), labelled(pairs), extractor, tmp_path / name, show=False)
    predictions = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("without", "with")]
    assert predictions[0] == predictions[1]
    assert [block["name"] for block in predictions[0]["blocks"]] == ["detector", "mae"]


def test_the_block_is_the_logarithm_by_each_row_alone(scored, extractor):
    brains = labelled(scored[:2])
    features = training_set(brains, extractor, candidate_score=True, show=False).features
    assert list(features.blocks) == ["detector", "mae", "score"]
    scores = np.concatenate([points.columns["score"] for _, points in scored[:2]])
    np.testing.assert_allclose(features.block("score")[:, 0], np.log(scores), rtol=1e-6)
    plain = training_set(brains, extractor, show=False).features
    assert np.array_equal(features.x[:, :-1], plain.x)
    zero = Points(scored[0][1].zyx[:2], {"label": np.array([0, 1]), "score": np.array([0.0, 0.5])})
    column = candidate_scores(labelled([(scored[0][0], zero)]))[0][0]
    np.testing.assert_allclose(column[:, 0], np.log([1e-6, 0.5]), rtol=1e-6)


def test_the_folder_says_so_and_gives_back_the_same(scored, folder, models, extractor, tmp_path):
    volume, points = scored[2]
    refiner = Refiner.load(folder)
    predictions = json.loads((folder / "report.json").read_text())
    assert predictions["columns"]["score"] == 1
    assert predictions["models"]["score"]["settings"] == {"column": "score", "made_by": ""}
    described = describe_model(folder)
    assert described["features"]["score"] == 1
    assert described["models"]["score"] == "column score"
    fresh = Refiner(C=0.01)
    fit_labelled(fresh, labelled(scored[:2]), extractor, tmp_path / "again", candidate_score=True, show=False)
    one, two = (refine(each, volume, points, **models) for each in (refiner, fresh))
    assert np.array_equal(one.columns["p_cell"], two.columns["p_cell"])
    assert one.meta["refiner_own_score"] == "score"
    # As predict_proba has it of features with the score beside them.
    features = training_set(labelled(scored[2:]), extractor, candidate_score=True, show=False).features
    np.testing.assert_allclose(one.columns["p_cell"], refiner.predict_proba(features)[:, 1], atol=1e-5)
    higher = Points(points.zyx, points.columns | {"score": points.columns["score"] * 3})
    assert (refine(refiner, volume, higher, **models).columns["p_cell"] > one.columns["p_cell"]).all()


def test_order_and_blocks_change_nothing(scored, folder, models, monkeypatch):
    volume, points = scored[2]
    refiner = Refiner.load(folder)
    whole = refine(refiner, volume, points, **models).columns["p_cell"]
    monkeypatch.setattr(candidate_classifier, "BLOCK", 4)
    order = np.random.default_rng(0).permutation(len(points))
    mixed = Points(points.zyx[order], {"score": points.columns["score"][order]})
    np.testing.assert_allclose(refine(refiner, volume, mixed, **models).columns["p_cell"], whole[order],
                               atol=1e-5)  # fmt: skip


def test_other_scores_are_other_inputs(scored, folder, models, tmp_path, monkeypatch):
    volume, points = scored[2]
    refiner, out = Refiner.load(folder), tmp_path / "cells.csv"
    monkeypatch.setattr(candidate_classifier, "BLOCK", 4)
    real, calls = Refiner.predict_proba, []

    def dying(self, *args, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **settings)

    monkeypatch.setattr(Refiner, "predict_proba", dying)
    with pytest.raises(KeyboardInterrupt):
        refine(refiner, volume, points, out=out, **models)
    other = with_scores(Points(points.zyx, {"label": points.columns["label"]}), seed=9)
    with pytest.raises(CanvasError, match="other inputs"):
        refine(refiner, volume, other, out=out, **models)
    before = len(calls)
    scored = refine(refiner, volume, points, out=out, **models)
    assert (
        len(calls) - before
        == len(Extractor(models["encoder"], models["detector"]).blocks(volume, points.zyx, 4)) - 2
    )
    whole = refine(refiner, volume, points, **models)
    np.testing.assert_allclose(scored.columns["p_cell"], whole.columns["p_cell"], atol=1e-5)
    with pytest.raises(CanvasError, match="made from other inputs"):
        refine(refiner, volume, other, out=out, **models)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"heat": np.ones(80)},
            "candidate score, column 'score'; these have heat: give candidates with the score",
        ),
        ({}, "column 'score'; these have none"),
        ({"score": np.where(np.arange(80) == 7, np.nan, 1.0)}, "'score' is not a number in row 8"),
        ({"score": np.where(np.arange(80) == 7, -2.5, 1.0)}, "'score', is -2.5 in row 8; .* not below 0"),
        ({"score": np.where(np.arange(80) == 7, np.inf, 1.0)}, "'score', is inf in row 8"),
        ({"score": np.full(80, "high")}, "'score' holds text"),
    ],
)
def test_candidates_without_a_score_are_not_judged(scored, folder, models, monkeypatch, columns, message):
    volume, points = scored[2]
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    with pytest.raises(CanvasError, match=message):
        refine(Refiner.load(folder), volume, Points(points.zyx, columns), **models)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda p: Points(p.zyx, {"label": p.columns["label"]}), {},
         "b: its candidates have no column score, p_cell, log_score, they have label; .* --score-column"),
        (lambda p: p, {"score": "heat"}, "a: its candidates have no column heat, they have label"),
        (lambda p: Points(p.zyx, {"label": p.columns["label"], "p_cell": p.columns["score"]}), {},
         "different columns .a 'score', b 'p_cell', c 'score'.; name one with --score-column"),
        (lambda p: Points(p.zyx, p.columns | {"score": p.columns["score"] * np.nan}), {},
         "b: the column 'score' is not a number in row 1"),
        (lambda p: Points(p.zyx, p.columns | {"score": -p.columns["score"]}), {}, "b: the candidate score"),
    ],
)  # fmt: skip
def test_a_score_that_is_missing_is_said_before_features_are_made(
    scored, extractor, tmp_path, monkeypatch, change, settings, message
):
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    pairs = [scored[0], (scored[1][0], change(scored[1][1])), scored[2]]
    with pytest.raises(CanvasError, match=message):
        fit_labelled(
            Refiner(),
            labelled(pairs, **settings),
            extractor,
            tmp_path / "refiner",
            candidate_score=True,
            show=False,
        )


def test_scores_of_another_detector_are_refused_where_files_name_theirs(brains, encoder, models, tmp_path):
    pairs = [(volume, with_scores(points, detector="log, sigma 4 um")) for volume, points in brains[:2]]
    extractor = Extractor(encoder=encoder, device="cpu")
    refiner = Refiner("mae", C=0.01)
    fit_labelled(refiner, labelled(pairs), extractor, tmp_path / "refiner", candidate_score=True, show=False)
    volume, points = brains[2]
    models["detector"] = None
    refine(refiner, volume, with_scores(points), **models)
    refine(refiner, volume, with_scores(points, detector="log, sigma 4 um"), **models)
    other = with_scores(points, detector="spots", detector_sha256="d" * 64)
    with pytest.raises(
        ModelMismatch, match=r"the detector dddddddddddd; .* on those of log, sigma 4 um: give"
    ):
        refine(refiner, volume, other, **models)


@pytest.mark.usefixtures("undrawn")
def test_a_report_has_one_method_more(shape_volumes, encoder, tmp_path):
    volumes, tables, truth = map(list, zip(*shape_volumes[:2], strict=True))
    options = {"tolerance_um": 6.0, "encoders": [encoder.path], "seeds": 1, "counts": (20,), "show": False}
    summary = report(volumes, tables, truth, tmp_path / "report", methods=["encoder"],
                   **ReportOptions(device="cpu", candidate_score=True).explicit, **options)  # fmt: skip
    assert list(summary["methods"]) == ["mae", "mae + candidate score"]
    assert summary["about"]["heads on features"].startswith("logistic, C chosen on training volumes")
    assert set(summary["label_curves"]) == set(summary["methods"])
    for change, methods, message in (
        ({}, ["score"], "next to others: give --encoder or --detector too"),
        ({"correction": "centre"}, ["encoder"], "correction centre would take the level"),
    ):
        with pytest.raises(CanvasError, match=message):
            report(volumes, tables, truth, tmp_path / "other", methods=methods,
                   **ReportOptions(device="cpu", candidate_score=True, **change).explicit,
                   **options)  # fmt: skip


def test_speed_is_measured_of_the_same_judgement(pooled, encoder, detector):
    folds = [part.name for part in pooled.parts]
    inputs = pooled, dict.fromkeys(folds, encoder), dict.fromkeys(folds, detector), folds
    made = Methods(*inputs, ReportOptions(device="cpu", candidate_score=True), False)
    *others, method = made.named("encoder")
    assert method.name == "concat + candidate score"
    plain = Methods(*inputs, ReportOptions(device="cpu"), False).named("encoder")
    assert [(one.name, one.identity("c")) for one in plain] == [
        (one.name, one.identity("c")) for one in others
    ]
    rows, scored = pooled.labelled(["a", "b"]), pooled.labelled(["c"])[5:25]
    fit = method.fit(training(pooled, rows, rows, "c", 0))
    np.testing.assert_allclose(fit.predict(scored), fit.from_scratch(scored), atol=1e-5)
    part = made.extractors["c"].features(pooled.parts[2].volume, pooled.zyx[scored], group="c")
    score, about = candidate_scores(pooled.parts)
    mine = np.concatenate(score)[scored]
    assert np.array_equal(method._of("c").x[scored], with_candidate_score(part, mine, about).x)
