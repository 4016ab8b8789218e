"""The threshold of a detector: every marker the same weight, scores of held-out volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from canvas_fm.data.points.boxes import inside_boxes
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.detect.out_of_distribution import LOOKS
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.folder.network_config import ConvMixerConfig, RelativeConfig
from canvas_fm.models.load_model import load, save_detector
from canvas_fm.training.detector import threshold
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.mae.training_crops import VolumeSource
from tests.training.detector.cubes import VOXEL_UM, tiny, train, write_cube


def test_every_marker_counts_the_same_for_the_threshold(tmp_path, monkeypatch):
    """Two volumes of one marker do not outvote the one of another."""
    names = {"a": "IBA1", "b": "IBA1", "c": "cFos"}
    cubes = [write_cube(tmp_path, name, seed=0, marker=marker) for name, marker in names.items()]
    low, high = threshold.THRESHOLDS < 0.3, threshold.THRESHOLDS > 0.7

    def curve(recipe, labelled, candidates):
        return 1.0 * high * 0.6 if labelled.source.volume.marker == "IBA1" else 1.0 * low

    monkeypatch.setattr(threshold, "f1_curve", curve)
    run = train(cubes, tmp_path / "run", tiny(training__steps=2))
    assert load(run.detector).config.threshold < 0.3


def test_the_threshold_is_chosen_at_the_spread_of_the_recipe(tmp_path, monkeypatch):
    cube = write_cube(tmp_path, "a", seed=0)
    falls = np.where(threshold.THRESHOLDS < 0.502, 0.6 + 0.6 * threshold.THRESHOLDS, 0.2)
    monkeypatch.setattr(threshold, "f1_curve", lambda *_: falls)
    chosen = [
        load(
            train(
                [cube], tmp_path / f"run{spread}", tiny(training__steps=1, detection__spread=spread)
            ).detector
        )
        for spread in (0.0, 0.3)
    ]
    assert chosen[1].config.threshold < 0.45 < chosen[0].config.threshold


def test_the_threshold_is_chosen_on_scores_of_detectors_that_did_not_see_the_volume(
    labelled_cubes, tmp_path, monkeypatch
):
    folds = {
        held_out: load(train(labelled_cubes, tmp_path / held_out, held_out=[held_out]).detector)
        for held_out in ("a", "b")
    }
    scored = {}
    original = threshold._candidates

    def candidates(recipe, detector, labelled, gain):
        scored[labelled.source.name] = detector.sha256
        return original(recipe, detector, labelled, gain)

    monkeypatch.setattr(threshold, "_candidates", candidates)
    run = train(labelled_cubes, tmp_path / "run", fold_detectors=list(folds.values()))
    expected = {name: detector.sha256 for name, detector in folds.items()}
    assert scored == expected
    assert load(run.detector).config.provenance["scored_by"] == expected


def test_relative_scores_that_choose_the_threshold_are_those_of_the_whole_volume(tmp_path):
    """The strongest cells around are outside the labelled box, and are found there."""
    torch.manual_seed(0)
    recipe = tiny()
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1, kernel_zyx=(3, 3, 3)), prior=0.15)
    torch.nn.init.normal_(net.head.weight, std=0.6)
    detector = save_detector(
        tmp_path / "d", net, voxel_um=VOXEL_UM, threshold=0.3, min_distance_um=6.0,
        relative=RelativeConfig(weight=0.7, rank=3, block_um=20.0, least=0.1),
        window_rule=WindowRule("median", 0, 4),
    )  # fmt: skip
    voxels = np.random.default_rng(1).integers(50, 400, (24, 64, 64)).astype(np.uint16)
    volume = Volume.from_array(voxels, voxel_um=VOXEL_UM, name="noise")
    box = np.array([[8, 24, 24, 16, 44, 44]])
    labelled = Labelled(VolumeSource("noise", volume), np.empty((0, 3)), box)
    found = threshold._candidates(recipe, detector, labelled, 1.0)
    whole = detect(detector, volume, threshold=threshold.LOWEST_THRESHOLD, device="cpu", show=False)
    rows = [inside_boxes(points.zyx, box) for points in (found, whole)]
    assert rows[0].sum() == rows[1].sum() >= 5
    assert found.columns["score"][rows[0]] == pytest.approx(whole.columns["score"][rows[1]], abs=1e-5)


def test_what_volumes_are_compared_with_is_the_training_volumes_alone(labelled_cubes, tmp_path, monkeypatch):
    """Cells a mm³ are of the labelled volumes that chose the threshold; the held-out one has no say."""
    looked_at = {}

    def statistics(volume, scores, threshold, mm3):
        looked_at[volume.path] = mm3
        return {"cells_mm3": 7.0}

    monkeypatch.setattr(threshold, "volume_statistics", statistics)
    detector = load(train(labelled_cubes, tmp_path / "run", held_out=["b"]).detector)
    volume = Volume.open(labelled_cubes[0][0])
    mm3 = np.prod(volume.shape_zyx) * np.prod(volume.voxel_um) * 1e-9
    assert looked_at == {volume.path: pytest.approx(mm3)}
    assert detector.config.provenance[LOOKS]["cells_mm3"] == [7.0, 7.0]


def test_fold_detectors_that_saw_all_or_detect_otherwise_are_refused(labelled_cubes, tmp_path):
    without_a = load(train(labelled_cubes, tmp_path / "a", held_out=["a"]).detector)
    with pytest.raises(CanvasError, match=r"every fold detector was trained on b .*; give one"):
        train(labelled_cubes, tmp_path / "run", fold_detectors=[without_a])
    crop = write_cube(tmp_path / "cut", "crop", 0)
    (crop[0].parent / "meta.json").write_text('{"cube": "cubes/b"}', encoding="utf-8")
    with pytest.raises(CanvasError, match=r"trained on crop .*'b', of which 'crop' is a crop"):
        train([crop], tmp_path / "run", fold_detectors=[without_a])
    smoother = tiny(detection__smooth_um=2.0)
    with pytest.raises(CanvasError, match=r"has smooth_um 1.0, the recipe 2.0"):
        train(labelled_cubes, tmp_path / "run", smoother, fold_detectors=[without_a])
