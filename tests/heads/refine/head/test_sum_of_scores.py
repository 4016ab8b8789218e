"""A refiner of two scores: detector's logit and the spot's amplitude, as a block and as a head."""

from __future__ import annotations

import json

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.heads.features import amplitude
from canvas_fm.heads.features.amplitude import SpotAmplitude
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_set import FeatureSet
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.head.head_models import SHARES
from canvas_fm.heads.refine.head.threshold import choose_threshold, most_even
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.maxima.laplacian import log_response

MEDIAN = SpotAmplitude(5.0, WindowRule("median", 0.0, 1.0))


def test_amplitude_is_the_response_near_a_point_however_it_is_tiled(shape_volumes, monkeypatch):
    volume, points, _ = shape_volumes[0]
    voxels = volume.read((0, 0, 0), volume.shape_zyx).astype(np.float32)
    response = log_response(voxels, 5.0, volume.voxel_um) / np.median(voxels)
    found = MEDIAN.at(volume, points.zyx)[:, 0]
    for row in (0, 17):
        low = np.maximum(np.floor(points.zyx[row] + 0.5).astype(int) - (1, 2, 2), 0)
        high = np.add(np.floor(points.zyx[row] + 0.5).astype(int), (2, 3, 3))
        best = response[tuple(map(slice, low, high))].max()
        assert found[row] == pytest.approx(np.log(max(best, 1e-3)), abs=1e-3)
    monkeypatch.setattr(amplitude, "TILE_ZYX", (13, 40, 25))
    np.testing.assert_allclose(MEDIAN.at(volume, points.zyx)[:, 0], found, atol=1e-4)


def test_the_unit_is_the_width_of_the_window(shape_volumes):
    volume, points, _ = shape_volumes[0]
    percentiles = SpotAmplitude(5.0)
    by_contrast = [np.exp(percentiles.at(one, points.zyx)) for one in (volume, volume.at_contrast(3))]
    np.testing.assert_allclose(by_contrast[1] / by_contrast[0], 3.0, rtol=1e-3)
    low, high = volume.window
    medians = np.median(volume.read((0, 0, 0), volume.shape_zyx))
    np.testing.assert_allclose(
        np.exp(MEDIAN.at(volume, points.zyx)) * medians, by_contrast[0] * (high - low), rtol=1e-3
    )


def brains_of(levels: list[float], share: float, noise: float = 0.0) -> tuple[FeatureSet, np.ndarray]:
    """Brains in which score a + share · b tells cells; `levels` move b against a from brain to brain."""
    random = np.random.default_rng(0)
    parts, label, names = [], [], []
    for number, level in enumerate(levels):
        is_cell = random.random(400) < 0.3
        total = np.where(is_cell, 2.0, -2.0) + random.normal(0, 0.7, 400)
        b = random.normal(level, 1.5, 400)
        parts.append(np.stack([total - share * b, b + random.normal(0, noise, 400)], axis=1))
        label.append(is_cell.astype(int))
        names += [f"brain {number}"] * 400
    x = np.concatenate(parts).astype(np.float32)
    return FeatureSet(x, {"heat": slice(0, 1), "amplitude": slice(1, 2)}, np.array(names)), np.concatenate(
        label
    )


def test_the_share_is_found_and_carries_to_a_brain_of_another_level():
    features, label = brains_of([0.0, 1.0, -1.0, 0.5], 2.0)
    refiner = Refiner("scores", model="sum").fit(features, label)
    assert refiner.C_ == 2.0
    other, truth = brains_of([4.0], 2.0)
    assert (refiner.predict(other) == truth).mean() > 0.97
    fixed = Refiner("scores", model="sum", C=0.0).fit(features, label)
    assert fixed.C_ == 0.0
    assert fixed.cross_validation_["pooled"]["f1"] < refiner.cross_validation_["pooled"]["f1"] - 0.1
    assert np.array_equal(fixed.logits(features), features.x[:, 0])


def test_a_plateau_is_worth_more_than_a_peak_and_each_brain_counts_as_one():
    is_cell = np.tile([True, False], 50)
    groups = np.repeat(["many", "few"], [80, 20])
    apart = np.where(is_cell, 1.0, -1.0) + np.linspace(0, 0.1, 100)
    best = choose_threshold(apart[None], is_cell, groups, {})
    assert best.f1 == pytest.approx(1.0, abs=0.01)
    assert 1.0 <= best.threshold < 1.01
    few_wrong = np.where((groups == "few") & ~is_cell, 2.0, apart)
    assert choose_threshold(few_wrong[None], is_cell, groups, {}).f1 == pytest.approx(
        (1 + 2 / 3) / 2, abs=0.02
    )
    assert choose_threshold(apart[None], is_cell, groups, {"few": 10}).f1 == pytest.approx(
        (1 + 2 / 3) / 2, abs=0.02
    )
    # One row of cells far below the others is given up where many false ones lie between.
    low = apart.copy()
    low[0] = -3.0
    assert choose_threshold(low[None], is_cell, groups, {}).threshold > -1.0
    dimmer = np.stack([apart, apart - 0.5])
    assert choose_threshold(dimmer, is_cell, groups, {}).threshold == pytest.approx(0.5, abs=0.02)


def test_of_shares_that_are_as_good_the_most_even_is_taken():
    as_good = [0.9] * len(SHARES)
    assert SHARES[most_even(as_good)] == 1.0
    worse = [0.88 if share < 2 else 0.9 for share in SHARES]
    assert SHARES[most_even(worse)] == 2.0


def test_the_command_line_fits_saves_and_applies_it(shape_volumes, detector, tmp_path, capsys):
    files = []
    for volume, points, _ in shape_volumes:
        points.write(tmp_path / f"{volume.name}.csv")
        files.append(str(tmp_path / f"{volume.name}.csv"))
    paths = [str(volume.path) for volume, _, _ in shape_volumes]
    fit = ["refine", "fit", "--volumes", *paths[:2], "--candidates", *files[:2], "--labels", "label"]
    fit += ["--detector", str(detector.path), "--detector-score", "--amplitude-um", "5"]
    fit += ["--amplitude-unit", "median", "--variant", "scores", "--head", "sum"]
    fit += ["--ignore-candidate-score", "--out", str(tmp_path / "refiner"), "--device", "cpu", "--json"]
    assert main(fit) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["columns_used"] == 2
    refiner = Refiner.load(tmp_path / "refiner")
    out = tmp_path / "cells.csv"
    apply = ["refine", "apply", str(tmp_path / "refiner"), paths[2], files[2], "--out", str(out)]
    assert main([*apply, "--detector", str(detector.path), "--device", "cpu"]) == 0
    volume, points, _ = shape_volumes[2]
    kept = Extractor(detector=detector, detector_score=True, amplitude=MEDIAN, device="cpu")
    logit = kept.features(volume, points.zyx, show=False)
    expected = logit.block("heat") + report["C"] * logit.block("amplitude")
    slope, offset = refiner.calibration_.knots[:, 0]
    p_cell = 1 / (1 + np.exp(-slope * expected[:, 0] - offset))
    np.testing.assert_allclose(Points.read(out).columns["p_cell"], p_cell, atol=1e-4)


def test_amplitude_alone_needs_no_model(shape_volumes, tmp_path):
    volumes, tables, _ = map(list, zip(*shape_volumes, strict=True))
    cf.fit_refiner(
        volumes[:2], tables[:2], tmp_path / "refiner", labels="label", amplitude_um=5.0, variant="scores",
        head="logistic", ignore_candidate_score=True, show=False,
    )  # fmt: skip
    found = refine(cf.Refiner.load(tmp_path / "refiner"), volumes[2], tables[2], show=False)
    kept = tables[2].columns["label"] >= 0
    assert len(np.unique(found.columns["p_cell"][kept])) > 10


def test_what_does_not_go_together_is_refused(shape_volumes, detector, tmp_path):
    volumes, tables, _ = map(list, zip(*shape_volumes[:2], strict=True))
    given = {"labels": "label", "show": False}
    with pytest.raises(CanvasError, match="a sum is of two scores or of one, here are 32 columns"):
        cf.fit_refiner(
            volumes, tables, tmp_path / "a", detector=detector, variant="detector", head="sum", **given
        )
    with pytest.raises(CanvasError, match="variant scores needs a block of one column"):
        cf.fit_refiner(volumes, tables, tmp_path / "b", detector=detector, variant="scores", **given)
    with pytest.raises(CanvasError, match="sigma is 0"):
        SpotAmplitude(0.0)
