"""The detector of a review: its threshold learned while somebody clicks, and the detector written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from canvas_fm import Volume, load
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.heads.review.session import ReviewSession
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.folder.network_config import ConvMixerConfig
from canvas_fm.models.load_model import Detector, save_detector
from canvas_fm.pipeline.adapt_to_answers import ReviewedDetector, adapted_folder
from canvas_fm.pipeline.background_learner import BackgroundLearner

N, SHAPE, UM = 300, (16, 32, 32), (4.0, 2.0, 2.0)


@pytest.fixture
def volume() -> Volume:
    voxels = np.random.default_rng(0).integers(0, 999, SHAPE, np.uint16)
    return Volume.from_array(voxels, voxel_um=UM, name="new")


@pytest.fixture
def detector(tmp_path: Path) -> Detector:
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(patch_zyx=(1, 1, 1), dim=8, depth=1, kernel_zyx=(3, 3, 3)))
    return save_detector(
        tmp_path / "det", net.eval(), voxel_um=UM, threshold=0.2, min_distance_um=8.0,
        provenance={"trained_on": [{"name": "before"}]},
    )  # fmt: skip


def candidates(found_by: str) -> Points:
    random = np.random.default_rng(0)
    zyx = random.integers(0, SHAPE, (N, 3)).astype(float)
    meta = {"detector_sha256": found_by, "detector": "another", "threshold": "0.1"}
    return Points(zyx, {"score": random.uniform(0.1, 1, N)}, meta)


def test_the_detector_written_while_clicking_has_the_threshold_of_the_answers(
    tmp_path: Path, volume: Volume, detector: Detector
):
    points = candidates(detector.sha256)
    session = ReviewSession(points, tmp_path / "labels.csv", ("anna",), order="random")
    is_cell = points.columns["score"] > 0.6
    x = np.random.default_rng(1).normal(is_cell[:, None], 0.3, (N, 2)).astype(np.float32)
    out = adapted_folder(session.out)
    reviewed = ReviewedDetector.of(detector.path, volume, points, out)
    learner = BackgroundLearner(session, lambda: x, reviewed)
    assert session.progress("anna")["detector"] is None
    for row in session.queue("anna", 100):
        session.answer("anna", f"click {row}", [row], int(is_cell[row]))
    assert learner.step()
    about = session.progress("anna")["detector"]
    session.close()
    assert about["sentence"].startswith("threshold of det from 0.2 to ")
    assert "50 more labels are worth" in about["curve"]
    adapted = load(tmp_path / "labels_detector", kind="detector")
    assert adapted.config.threshold == pytest.approx(0.6, abs=0.07)
    provenance = adapted.config.provenance
    assert provenance["adapted_from"] == detector.sha256
    assert provenance["trained_on"] == [{"name": "before"}]
    assert (provenance["adaptation"]["answers"], provenance["adaptation"]["chosen"]) == (100, "threshold")
    for name, weights in adapted.net.state_dict().items():
        assert torch.equal(weights, detector.net.state_dict()[name])


def test_candidates_of_another_detector_are_refused(tmp_path: Path, volume: Volume, detector: Detector):
    sentence = "the candidates are of another, not of det; adapt the detector.* --threshold 0.05$"
    with pytest.raises(CanvasError, match=sentence):  # far below its own threshold of .2
        ReviewedDetector.of(detector.path, volume, candidates("0" * 64), tmp_path / "new")
