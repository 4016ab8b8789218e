"""A detector warns of a volume that looks unlike what its threshold was chosen on, and says what to do."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume, WindowRule
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.detect.out_of_distribution import statistics_ranges, volume_statistics
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import load, save_detector

VOXEL_UM = (4.0, 2.0, 2.0)


def noise(spread: float = 3.0) -> Volume:
    voxels = np.random.default_rng(0).normal(100, spread, (16, 40, 40)).clip(0)
    return Volume.from_array(np.rint(voxels).astype(np.uint16), voxel_um=VOXEL_UM, name="new brain")


def detector(folder, looks, threshold=0.2):
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1, kernel_zyx=(3, 3, 3)), prior=0.3)
    save_detector(
        folder, net, voxel_um=VOXEL_UM, threshold=threshold, min_distance_um=8.0,
        window_rule=WindowRule("median", 0, 8), provenance={"looks": looks},
    )  # fmt: skip
    return load(folder, kind="detector")


def test_a_look_is_what_it_says():
    scores = np.r_[np.full(30, 0.25), np.full(10, 0.9), np.full(5, 0.1)].astype(np.float32)
    look = volume_statistics(noise(), scores, 0.2, mm3=0.5)
    assert look["cells_mm3"] == 80
    assert look["strong"] == pytest.approx(10 / 40)
    assert look["contrast"] == pytest.approx(1.09, abs=0.05)
    assert "strong" not in volume_statistics(noise(), scores[:5], 0.2, mm3=0.5)
    assert statistics_ranges([look, look | {"cells_mm3": 20.0}])["cells_mm3"] == [20.0, 80.0]


def test_it_warns_of_the_unlike_and_of_nothing_else(tmp_path, caplog):
    wide = {"contrast": [1.0, 2.0], "cells_mm3": [1.0, 1e7], "strong": [0.0, 1.0]}
    with caplog.at_level(logging.WARNING):
        detect(detector(tmp_path / "a", wide), noise(), show=False)
        assert not caplog.records
        out = tmp_path / "cells.csv"
        detect(detector(tmp_path / "b", wide | {"contrast": [5.0, 9.0]}), noise(), out=out, show=False)
    assert "5 to 9 were seen" in Points.read(out).meta["unlike_calibration"]
    (record,) = caplog.records
    assert "new brain looks unlike what b was calibrated on: its 99.9th percentile" in record.message
    assert "5 to 9 were seen" in record.message
    assert "--threshold" in record.message


def test_candidates_below_the_threshold_are_no_sign_of_another_volume(tmp_path, caplog):
    volume = noise()
    scores = detect(detector(tmp_path / "a", {}), volume, threshold=0.01, show=False).columns["score"]
    own = float(np.quantile(scores, 0.9))
    seen = (scores >= own).sum() / (np.prod(volume.shape_zyx) * np.prod(VOXEL_UM) * 1e-9)
    net = detector(tmp_path / "b", {"cells_mm3": [seen, seen]}, own)
    with caplog.at_level(logging.WARNING):
        detect(net, volume, threshold=0.01, show=False)  # ten times as many rows
        detect(net, volume, threshold=float(scores.max()), show=False)  # a fraction of them
    assert not caplog.records


def test_a_detector_that_knows_no_looks_is_silent(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        detect(detector(tmp_path / "a", {}), noise(), show=False)
    assert not caplog.records
