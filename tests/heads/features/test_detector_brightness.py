"""The detector's score with brightness in it, at candidates that others found."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import BadInput
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.apply import candidate_classifier
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.fit_flags import FitOptions
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect import typical_amplitude as typical
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.detect.tiles.tiled_detection import TiledDetection
from canvas_fm.inference.detect.typical_amplitude import typical_amplitude
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.folder.network_config import AmplitudeConfig, RelativeConfig
from canvas_fm.models.load_model import save_detector
from canvas_fm.pipeline.detect_refined import detect_refined
from tests.heads.conftest import VOXEL_UM

SIGMA_UM, BLOCK_UM = 4.0, 40.0


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """A detector in whose score brightness is compared with a typical detection's."""
    torch.manual_seed(1)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)), prior=0.3)
    torch.nn.init.normal_(net.head.weight, std=1.0)
    return save_detector(
        tmp_path_factory.mktemp("detector") / "bright", net, voxel_um=VOXEL_UM, threshold=0.3,
        min_distance_um=6, amplitude=AmplitudeConfig(sigma_um=SIGMA_UM, weight=0.5, relative="typical"),
        relative=RelativeConfig(weight=0.0, block_um=BLOCK_UM, least=0.08),
    )  # fmt: skip


@pytest.fixture(scope="module")
def extractor(bright) -> Extractor:
    return Extractor(detector=bright, detector_score=True, brightness=True, device="cpu")


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p / (1 - p))


@pytest.fixture(scope="module")
def found(brains, bright) -> Points:
    points = detect(bright, brains[0][0], threshold=0.01, device="cpu", show=False)
    assert len(points) > 20
    return points


def test_at_a_detection_it_is_the_score_that_it_was_found_with(brains, bright, extractor, found):
    score = extractor.features(brains[0][0], found.zyx, show=False).block("heat")[:, 0]
    np.testing.assert_allclose(score, logit(found.columns["score"]), atol=5e-3)
    heat = Extractor(detector=bright, detector_score=True, device="cpu")
    assert np.abs(heat.features(brains[0][0], found.zyx, show=False).block("heat")[:, 0] - score).max() > 0.2


def test_it_is_the_same_whatever_other_candidates_there_are(brains, extractor, found):
    volume, far = brains[0][0], found.zyx[np.linspace(0, len(found) - 1, 3).astype(int)]
    every = extractor.features(volume, found.zyx, show=False).block("heat")
    rows = [np.flatnonzero((found.zyx == one).all(axis=1))[0] for one in far]
    for one, row in zip(far, rows, strict=True):
        alone = extractor.features(volume, one[None], show=False).block("heat")
        np.testing.assert_allclose(alone[0], every[row], atol=1e-4)


def test_it_is_measured_once_for_the_same_tissue_unless_that_is_damaged(brains, bright, monkeypatch):
    volume, points = brains[1]
    monkeypatch.setattr(typical, "_LAST", OrderedDict())
    tiles, real = [], TiledDetection.tile
    monkeypatch.setattr(TiledDetection, "tile", lambda job, n: (tiles.append(n), real(job, n))[1])
    first = typical_amplitude(bright, volume, points.zyx, device="cpu", show=False)
    again = typical_amplitude(bright, volume, points.zyx[::-1], device="cpu", show=False)
    assert len(tiles) == 1
    assert again is first
    monkeypatch.setattr(typical, "_LAST", OrderedDict())
    broken = lambda job, n: replace(real(job, n), bad_chunks=("chunk 0 is damaged",))  # noqa: E731
    monkeypatch.setattr(TiledDetection, "tile", broken)
    other = Volume.open(volume.path)
    typical_amplitude(bright, other, points.zyx, device="cpu", show=False)
    assert list(other.bad_chunks) == ["chunk 0 is damaged"]
    assert not typical._LAST


def test_where_nothing_is_detected_around_it_is_the_heat(brains, bright, extractor):
    volume, points = brains[0]
    nothing = typical_amplitude(bright, volume, points.zyx, device="cpu", show=False)
    empty = type(nothing)(nothing.block[:0], nothing.log_amplitude[:0], nothing.edge_zyx)
    heat = Extractor(detector=bright, detector_score=True, device="cpu").features(
        volume, points.zyx, show=False
    )
    score = extractor.features(volume, points.zyx, typical=empty, show=False)
    np.testing.assert_allclose(score.block("heat"), heat.block("heat"), atol=1e-5)
    assert not np.isnan(nothing.at(points.zyx)).any()


def test_a_refiner_of_this_score_alone_gives_the_same_in_blocks_and_with_detection(
    brains, bright, extractor, tmp_path, monkeypatch
):
    parts = label_brains([v for v, _ in brains[:2]], [p for _, p in brains[:2]], labels="label")
    fit_labelled(Refiner("scores", model="sum"), parts, extractor, tmp_path / "r", show=False)
    refiner = Refiner.load(tmp_path / "r")
    assert refiner.columns_.width == 1
    assert refiner.C_ is None
    volume, points = brains[2]
    expected = refiner.predict_proba(extractor.features(volume, points.zyx, show=False))[:, 1]
    monkeypatch.setattr(candidate_classifier, "BLOCK", 16)
    running = {"detector": bright, "device": "cpu", "show": False}
    scored = refine(refiner, volume, Points(points.zyx), out=tmp_path / "cells.csv", **running)
    np.testing.assert_allclose(scored.columns["p_cell"], expected, atol=1e-5)
    candidates = detect(bright, volume, threshold=0.05, device="cpu", show=False)
    after = refine(refiner, volume, candidates, **running)
    at_once = detect_refined(
        bright, volume, refiner, tmp_path / "both.csv", threshold=0.05, device="cpu", show=False
    )
    np.testing.assert_allclose(at_once.columns["p_cell"], after.columns["p_cell"], atol=1e-4)


def test_what_does_not_go_with_it_is_refused(bright, detector, encoder):
    with pytest.raises(BadInput, match="scores of the detector spots do not compare brightness"):
        Extractor(detector=detector, detector_score=True, brightness=True)
    with pytest.raises(BadInput, match="brightness is part of the detector score"):
        Extractor(detector=bright, brightness=True)
    with pytest.raises(BadInput, match="the detector score needs a detector"):
        Extractor(encoder, detector_score=True, brightness=True)
    with pytest.raises(ValueError, match="--detector-brightness is part of --detector-score"):
        FitOptions(detector_brightness=True)
