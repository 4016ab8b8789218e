"""The shape of a spot as a block of a refiner: Python, file, command line; never worse than the own score."""

from __future__ import annotations

import json

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_cache import cached_features
from canvas_fm.heads.features.shape import SHAPE_RULE, shape_crop, shape_features, shape_of_points
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.head import boosted_trees
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.training.finetune.finetune import Tuning


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(boosted_trees, "ITERATIONS", 20)


def test_shape_of_points_is_that_of_their_crops_in_medians(shape_volumes):
    volume, points, _ = shape_volumes[0]
    found = shape_of_points(volume, points.zyx)
    whole = volume.read((0, 0, 0), volume.shape_zyx).astype(np.float32)
    size = shape_crop(volume.voxel_um)
    padded = np.pad(whole / (64 * np.median(whole)), [(n // 2, n // 2) for n in size])
    for row in (0, 17, len(points) - 1):
        z, y, x = np.floor(points.zyx[row] + 0.5).astype(int)
        crop = padded[z : z + size[0], y : y + size[1], x : x + size[2]]
        expected = shape_features(np.clip(crop, 0, 1)[None], volume.voxel_um)[0]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_it_stands_behind_the_models_blocks_and_is_kept_by_itself(brains, encoder, tmp_path):
    volume, points = brains[0]
    both = Extractor(encoder, shape=SHAPE_RULE, device="cpu")
    features = both.features(volume, points.zyx, show=False)
    assert list(features.blocks) == ["mae", "shape"]
    assert features.blocks["shape"] == both.layout["shape"]
    kept = cached_features(both, volume, points.zyx, tmp_path, group=volume.name, show=False)
    assert np.array_equal(kept.x, features.x)
    alone = Extractor(shape=SHAPE_RULE)
    again = cached_features(alone, volume, points.zyx, tmp_path, group=volume.name, show=False)
    assert np.array_equal(again.block("shape"), features.block("shape"))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_refiner_of_shape_alone_needs_no_model(shape_volumes, tmp_path):
    volumes, tables, _ = map(list, zip(*shape_volumes[:2], strict=True))
    report = cf.fit_refiner(volumes, tables, tmp_path / "refiner", labels="label", shape=True, show=False)
    assert (report["variant"], report["settings"]["model"]) == ("shape", "blend")
    refiner = cf.Refiner.load(tmp_path / "refiner")
    volume, points, _ = shape_volumes[2]
    found = refine(refiner, volume, points, show=False)
    kept = points.columns["label"] >= 0
    is_cell = points.columns["label"][kept] == 1
    # Six times as bright as those that it was fitted on: shape in medians does not see the gain.
    assert ((found.columns["p_cell"][kept] >= refiner.threshold_) == is_cell).mean() > 0.9


def test_the_command_line_fits_and_applies_it_beside_a_model(shape_volumes, detector, tmp_path, capsys):
    files = []
    for volume, points, _ in shape_volumes:
        points.write(tmp_path / f"{volume.name}.csv")
        files.append(str(tmp_path / f"{volume.name}.csv"))
    paths = [str(volume.path) for volume, _, _ in shape_volumes]
    fit = ["refine", "fit", "--volumes", *paths[:2], "--candidates", *files[:2], "--labels", "label"]
    fit += [
        "--detector",
        str(detector.path),
        "--detector-score",
        "--shape",
        "--out",
        str(tmp_path / "refiner"),
    ]
    assert main([*fit, "--device", "cpu", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["columns"]) >= {"detector", "heat", "shape"}
    out = tmp_path / "cells.csv"
    apply = ["refine", "apply", str(tmp_path / "refiner"), paths[2], files[2], "--out", str(out)]
    assert main([*apply, "--detector", str(detector.path), "--device", "cpu"]) == 0
    refiner = Refiner.load(tmp_path / "refiner")
    python = refine(
        refiner, shape_volumes[2][0], shape_volumes[2][1], detector=detector, device="cpu", show=False
    )
    np.testing.assert_allclose(Points.read(out).columns["p_cell"], python.columns["p_cell"], atol=1e-6)


def test_a_refiner_that_ranks_worse_than_the_candidates_takes_their_score(shape_volumes, tmp_path, caplog):
    """Labels that the score knows and no voxel does: by default the order of the candidates is kept."""
    random = np.random.default_rng(0)
    tables = []
    for _, points, _ in shape_volumes:
        label = random.integers(0, 2, len(points))
        tables.append(Points(points.zyx, {"score": 1 + label + random.random(len(points)), "label": label}))
    volumes = [volume for volume, _, _ in shape_volumes]
    given = {"labels": "label", "shape": True, "show": False}
    report = cf.fit_refiner(volumes, tables, tmp_path / "kept", **given)
    order = report["candidates_order"]
    assert order["blended_in"]
    assert order["own_auc"] > order["refined_auc"]
    for name, brain in report["cross_validation"]["brains"].items():
        assert brain["auc"] >= order["own_auc"] - 0.03, name
    assert "candidates to be refined need the column 'score'" in caplog.text
    with pytest.raises(CanvasError, match="uses the candidate score, column 'score'; these have none"):
        refine(Refiner.load(tmp_path / "kept"), volumes[0], Points(tables[0].zyx), show=False)
    plain = cf.fit_refiner(volumes, tables, tmp_path / "not", **given, ignore_candidate_score=True)
    assert plain["candidates_order"] is None
    assert plain["cross_validation"]["pooled"]["auc"] < 0.7


def test_what_does_not_go_with_it_is_refused_before_work(brains, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    trained = label_brains([volume for volume, _ in brains], [points for _, points in brains], labels="label")
    with pytest.raises(CanvasError, match="variant shape needs the shape features: give --shape"):
        fit_labelled(Refiner("shape"), trained, Extractor(encoder), tmp_path / "refiner")
    both = Extractor(encoder, shape=SHAPE_RULE)
    with pytest.raises(CanvasError, match="without the shape block"):
        fit_labelled(Refiner("mae"), trained, both, tmp_path / "refiner", tuning=Tuning(1))
    with pytest.raises(CanvasError, match="leave --shape and --head blend out"):
        cf.fit_refiner([], [], tmp_path / "refiner", shape=True, unfreeze=1)
