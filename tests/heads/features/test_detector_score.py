"""Refiners that look at the detector's own heat."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from canvas_fm.data.points.points import Points
from canvas_fm.errors import BadInput, CanvasError
from canvas_fm.heads.compare.methods import training
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_cache import cached_features
from canvas_fm.heads.features.feature_set import FeatureSet
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.apply import candidate_classifier
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.fit.fit import fit_labelled, training_set
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.detect import detect
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import save_detector
from canvas_fm.training.finetune.finetune import Tuning
from canvas_fm.viewing.report.methods import Methods
from canvas_fm.viewing.report.report import report
from canvas_fm.viewing.report.report_flags import ReportOptions
from tests.heads.conftest import VOXEL_UM


@pytest.fixture(scope="module")
def extractor(encoder, detector) -> Extractor:
    return Extractor(encoder=encoder, detector=detector, detector_score=True, device="cpu")


@pytest.fixture
def models(encoder, detector):
    return {"encoder": encoder, "detector": detector, "device": "cpu", "show": False}


def labelled(pairs):
    return label_brains([volume for volume, _ in pairs], [points for _, points in pairs], labels="label")


def logit(p: np.ndarray) -> np.ndarray:
    return np.log((p + 1e-4) / (1 - p + 1e-4))


def test_at_a_detection_it_is_the_score_that_it_was_found_with(brains, detector, extractor):
    volume = brains[0][0]
    cells = detect(detector, volume, threshold=0.001, device="cpu", show=False)
    assert len(cells) > 20
    heat = extractor.features(volume, cells.zyx, show=False).block("heat")[:, 0]
    np.testing.assert_allclose(heat, logit(cells.columns["score"]), atol=1e-4)
    # Beside its peak, as a candidate of another detector may lie, it is the peak's or a higher one's.
    inside = (cells.zyx[:, 2] < volume.shape_zyx[2] - 1).nonzero()[0]
    beside = extractor.features(volume, cells.zyx[inside] + (0, 0, 1), show=False).block("heat")[:, 0]
    assert (beside >= heat[inside] - 1e-4).all()


def test_it_stands_between_the_pooled_map_and_the_embedding(brains, encoder, detector, extractor):
    volume, points = brains[0]
    hot = extractor.features(volume, points.zyx, show=False)
    plain = Extractor(encoder, detector, device="cpu").features(volume, points.zyx, show=False)
    assert list(hot.blocks) == ["detector", "heat", "mae"]
    assert hot.provenance["heat"].sha256 == detector.sha256
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
    kept = cached_features(extractor, volume, points.zyx, tmp_path, group=volume.name, show=False)
    assert np.array_equal(kept.x, fresh.x)
    assert list(kept.provenance) == ["detector", "heat", "mae"]
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    assert np.array_equal(
        cached_features(extractor, volume, points.zyx, tmp_path, group=volume.name).x, kept.x
    )
    cold = Extractor(extractor.encoder, extractor.detector, device="cpu")
    again = cached_features(cold, volume, points.zyx, tmp_path, group=volume.name)
    assert np.array_equal(again.x, kept.only("detector", "mae").x)


@pytest.mark.parametrize("variant", ["concat", "mae", "detector", "heat"])
def test_a_refiner_with_it_needs_points_alone(brains, extractor, models, tmp_path, monkeypatch, variant):
    out = tmp_path / "refiner"
    fit_labelled(
        Refiner(variant, C=0.01),
        labelled(brains[:2]),
        extractor,
        out,
        augment_contrast=[0.5, 1, 2],
        show=False,
    )
    refiner = Refiner.load(out)
    assert "heat" in refiner.columns_.sizes
    assert json.loads((out / "report.json").read_text())["contrasts"] == [1.0, 0.5, 2.0]
    assert json.loads((out / "config.json").read_text())["provenance"]["contrasts"] == [1.0, 0.5, 2.0]
    volume, points = brains[2]
    if variant in ("detector", "heat"):
        models["encoder"] = None
    monkeypatch.setattr(candidate_classifier, "BLOCK", 16)
    scored = refine(refiner, volume, Points(points.zyx), **models)
    features = training_set(labelled(brains[2:]), extractor, show=False).features
    np.testing.assert_allclose(scored.columns["p_cell"], refiner.predict_proba(features)[:, 1], atol=1e-5)
    assert scored.meta["refiner_detector_sha256"] == models["detector"].sha256


def test_what_does_not_go_with_it_is_refused(brains, encoder, extractor, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="the detector score needs a detector"):
        Extractor(encoder=encoder, detector_score=True)
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    for settings, message in (
        (
            {"correction": "centre"},
            "take the level of the detector score away; .* without the detector score",
        ),
        ({"cut": "heat", "ratio": 0.5}, "cut is 'heat'; variant 'concat' uses detector, mae"),
    ):
        with pytest.raises(BadInput, match=message):
            fit_labelled(Refiner(**settings), labelled(brains), extractor, tmp_path / "refiner")


@pytest.mark.usefixtures("undrawn")
def test_a_report_judges_it_alone_and_beside_features(shape_volumes, encoder, detector, tmp_path):
    volumes, tables, truth = map(list, zip(*shape_volumes[:2], strict=True))
    options = {"tolerance_um": 6.0, "seeds": 1, "counts": (), "show": False, "methods": ["encoder"]}
    both = {"encoders": [encoder.path], "detectors": [detector.path]}
    settings = ReportOptions(
        device="cpu",
        C=0.01,
        detector_score=True,
        candidate_score=True,
        augment_contrast=(2.0,),
        features=tmp_path / "kept",
    )
    summary = report(volumes, tables, truth, tmp_path / "report", **settings.explicit, **both, **options)
    assert list(summary["methods"]) == [
        "detector", "mae", "concat", "detector score", "detector + detector score", "mae + detector score",
        "concat + detector score", "concat + detector score + candidate score",
    ]  # fmt: skip
    assert summary["about"]["fitted at contrasts"] == "1, 2"
    assert summary["about"]["heads on features"].startswith("logistic, C 0.01")
    with pytest.raises(CanvasError, match="detector score is a feature next to others: give --detector"):
        report(
            volumes,
            tables,
            truth,
            tmp_path / "other",
            **settings.explicit,
            encoders=[encoder.path],
            **options,
        )
    centred = ReportOptions(device="cpu", detector_score=True, correction="centre")
    with pytest.raises(
        CanvasError, match="correction centre would take the level of the detector score away"
    ):
        report(volumes, tables, truth, tmp_path / "other", **centred.explicit, **both, **options)


def test_fine_tuning_does_not_look_at_it(pooled, encoder, detector, brains, extractor, tmp_path, monkeypatch):
    folds = [part.name for part in pooled.parts]
    inputs = pooled, dict.fromkeys(folds, encoder), dict.fromkeys(folds, detector), folds
    identities = [
        [
            method.identity("c")
            for method in Methods(*inputs, ReportOptions(device="cpu", detector_score=heat), False).named(
                "finetune"
            )
        ]
        for heat in (False, True)
    ]
    assert identities[0] == identities[1]
    assert all("heat" not in each["made"] for each in identities[1])
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    with pytest.raises(BadInput, match="detector_score goes with the encoder as it is"):
        fit_labelled(Refiner(), labelled(brains), extractor, tmp_path / "refiner", tuning=Tuning(1))


def test_methods_of_a_report_share_what_they_look_at(pooled, encoder, detector, monkeypatch):
    folds = [part.name for part in pooled.parts]
    inputs = pooled, dict.fromkeys(folds, encoder), dict.fromkeys(folds, detector), folds
    seen, only = [], FeatureSet.only

    def chosen(features, *names):
        seen.append(only(features, *names))
        return seen[-1]

    monkeypatch.setattr(FeatureSet, "only", chosen)
    methods = Methods(*inputs, ReportOptions(device="cpu", detector_score=True, ratios=(0.5,)), False)
    assert len([*methods.named("encoder"), *methods.sweep()]) == 8
    assert len({id(features) for features in seen}) == 2  # with the heat, and without


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_report_of_a_detector_with_a_second_channel(shape_volumes, tmp_path):
    torch.manual_seed(2)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3), channels=2))
    double = save_detector(tmp_path / "double", net, voxel_um=VOXEL_UM, threshold=0.5, min_distance_um=6)
    volumes, tables, truth = map(list, zip(*shape_volumes[:2], strict=True))
    options = {"tolerance_um": 6.0, "seeds": 1, "counts": (), "show": False, "methods": ["encoder"]}
    options |= {"detectors": [double.path], "device": "cpu", "detector_score": True}
    options |= {"augment_contrast": (2.0,), "C": 0.01}
    with pytest.raises(CanvasError, match="was trained with a background channel: give --background"):
        report(volumes, tables, truth, tmp_path / "none", **options)
    with pytest.raises(CanvasError, match="2 volumes and 1 of background were given"):
        report(volumes, tables, truth, tmp_path / "few", background=volumes[:1], **options)
    methods = {
        name: report(volumes, tables, truth, tmp_path / name, background=second, **options)["methods"]
        for name, second in {"same": volumes, "turned": volumes[::-1]}.items()
    }
    assert list(methods["same"]) == ["detector", "detector score", "detector + detector score"]
    assert methods["same"]["detector"]["pooled"]["auc"] != methods["turned"]["detector"]["pooled"]["auc"]


def test_speed_is_measured_of_the_same_judgement(pooled, encoder, detector):
    folds = [part.name for part in pooled.parts]
    inputs = pooled, dict.fromkeys(folds, encoder), dict.fromkeys(folds, detector), folds
    methods = Methods(
        *inputs, ReportOptions(device="cpu", detector_score=True, augment_contrast=(0.5,)), False
    ).named("encoder")
    assert methods[-1].name == "concat + detector score"
    rows, scored = pooled.labelled(["a", "b"]), pooled.labelled(["c"])[5:25]
    fit = methods[-1].fit(training(pooled, rows, rows, "c", 0))
    np.testing.assert_allclose(fit.predict(scored), fit.from_scratch(scored), atol=1e-5)
