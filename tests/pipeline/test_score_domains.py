"""Detectors over domains: none is scored on what it was trained on, test brains stay shut, work resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.curve import Curve
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import save_detector
from canvas_fm.pipeline import domain_volumes
from canvas_fm.pipeline import score_domains as pipeline
from canvas_fm.pipeline.domain_volumes import Domain, labelled_domains, phantom_domain, phantom_domains
from canvas_fm.pipeline.score_domains import LOG, score_domains

VOXEL_UM = (4.0, 2.0, 2.0)
SHAPE = (16, 40, 40)


@pytest.fixture(autouse=True)
def _small_phantoms(monkeypatch):
    monkeypatch.setattr(domain_volumes, "PHANTOM_SHAPE", (8, 32, 32))


def write_brain(folder, name: str, marker: str = "cFos") -> list:
    random = np.random.default_rng(len(name))
    voxels = random.integers(90, 110, SHAPE).astype(np.uint16)
    cells = np.array([[4.0, 10, 10], [8, 28, 20], [11, 12, 30]])
    for z, y, x in cells.astype(int):
        voxels[z - 1 : z + 2, y - 2 : y + 3, x - 2 : x + 3] = 900
    with Volume.create(folder / f"{name}.zarr", SHAPE, voxel_um=VOXEL_UM, marker=marker) as volume:
        volume.write((0, 0, 0), voxels)
    Points(cells).write(folder / f"{name}.csv")
    return [folder / f"{name}.zarr", folder / f"{name}.csv"]


def detector(folder, *trained_on: str, seed: int = 0, channels: int = 1, spread: float = 0.0):
    torch.manual_seed(seed)
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1, kernel_zyx=(3, 3, 3), channels=channels), prior=0.3)
    save_detector(
        folder, net, voxel_um=VOXEL_UM, threshold=0.3, min_distance_um=8.0,
        window_rule=WindowRule("median", 0, 8),
        provenance={
            "trained_on": [{"name": n} for n in trained_on], "recipe": {"detection": {"spread": spread}}
        },
    )  # fmt: skip
    return folder


def test_a_detector_is_scored_only_on_what_it_did_not_see(tmp_path):
    brains = [write_brain(tmp_path, name) for name in ("a", "b", "c")]
    domains = labelled_domains(*zip(*brains, strict=True), None, {"cFos": 8.0})
    folds = [detector(tmp_path / "d1", "a", "c"), detector(tmp_path / "d2", "b", seed=1)]
    report = score_domains(tmp_path / "out", domains, {"folds": folds}, show=False)
    scored = report["methods"]["folds"]["domains"]
    assert set(scored) == {"a", "b", "c"}
    assert len(scored["a"]["f1_of"]) == 1  # by d2 alone
    assert report["methods"][LOG]["domains"]["a"]["f1"] == 1.0  # three bright blobs on nothing
    with pytest.raises(CanvasError, match="trained on every domain"):
        score_domains(tmp_path / "o", domains, {"x": [detector(tmp_path / "d3", "a", "b", "c")]}, show=False)


def test_crops_of_what_a_detector_saw_are_not_held_out(tmp_path):
    brain, other = write_brain(tmp_path, "a"), write_brain(tmp_path, "b")
    crop = write_brain(tmp_path / "cut", "crop")
    (tmp_path / "cut" / "meta.json").write_text('{"cube": "cubes/a"}', encoding="utf-8")
    domains = labelled_domains(*zip(brain, other, crop, strict=True), None, {"cFos": 8.0})
    report = score_domains(tmp_path / "out", domains, {"d": [detector(tmp_path / "d", "a")]}, show=False)
    assert set(report["methods"]["d"]["domains"]) == {"b"}
    with pytest.raises(CanvasError, match="'a' is left out and 'crop', which holds voxels of"):
        pipeline.train_in_folds("cfos_detector", domains, [["a"], ["crop", "b"]], [0], tmp_path / "runs")


def test_cross_fitted_thresholds_come_from_the_other_brains_as_scored_unseen(tmp_path, monkeypatch):
    """Each of three brains has its cells at another score: the threshold of one is the others'."""
    brains = [write_brain(tmp_path, name) for name in ("a", "b", "c")]
    domains = labelled_domains(*zip(*brains, strict=True), None, {"cFos": 8.0})
    best = {"a": 0.5, "b": 0.5, "c": 0.8}  # below it as many false ones as cells

    def curve(held, detector):
        at = best[held.domain.name]
        return Curve(np.array([at, at - 0.1]), np.array([60, 60]), np.array([0, 60]), 60)

    monkeypatch.setattr(pipeline._Held, "of_detector", curve)
    models = {"folds": [detector(tmp_path / "d")]}

    def thresholds(**options):
        report = score_domains(tmp_path / "out", domains, models, laplacian=False, show=False, **options)
        return {name: row["threshold"] for name, row in report["methods"]["folds"]["domains"].items()}

    assert thresholds() == {"a": 0.3, "b": 0.3, "c": 0.3}
    chosen = thresholds(cross_fit=True)
    assert 0.4 < chosen["c"] <= 0.5  # of a and b alone
    without_c = thresholds(cross_fit=True, never=["c"])
    assert 0.4 < without_c["a"] <= 0.5
    models["folds"] = [detector(tmp_path / "e", spread=0.5)]
    assert thresholds(cross_fit=True, never=["c"])["a"] < without_c["a"]  # the recipe's own way to choose
    with pytest.raises(CanvasError, match="no held-out labelled volume is left"):
        thresholds(cross_fit=True, never=["a", "b"])


def test_the_weights_that_a_training_started_from_count_as_seen(tmp_path):
    path = detector(tmp_path / "d")
    config = pipeline.load(path, kind="detector").config
    provenance = {"trained_on": [{"name": "b"}], "start_trained_on": [{"name": "a"}]}
    net = HeatMapNet(config.architecture)
    later = save_detector(
        tmp_path / "e", net, voxel_um=VOXEL_UM, threshold=0.3, min_distance_um=8.0, provenance=provenance
    )
    assert pipeline.trained_on(later) == {"a", "b"}


def test_test_brains_are_not_even_opened_before_the_final_test(tmp_path):
    path, points = write_brain(tmp_path, "a")
    gone = tmp_path / "kept.zarr"  # not there: opening it would fail
    both = labelled_domains([path, gone], [points, points], None, {"cFos": 8.0}, test=["kept"])
    assert [domain.name for domain in both] == ["a"]
    write_brain(tmp_path, "kept")
    last = labelled_domains(
        [path, gone], [points, points], None, {"cFos": 8.0}, test=["kept"], final_test=True
    )
    assert [domain.name for domain in last] == ["kept"]
    choosing, testing = phantom_domains(5), phantom_domains(5, test=True)
    assert all(0 <= domain.seed < 1000 for domain in choosing)
    assert all(1000 <= domain.seed < 1100 for domain in testing)
    assert phantom_domains(5) == choosing
    with pytest.raises(CanvasError, match="there are 1000"):
        phantom_domains(1001)


def test_a_second_run_reads_what_the_first_had_worked_out(tmp_path, monkeypatch):
    domains = [*phantom_domains(2), Domain("other", "phantom nuclei", 8.0, seed=77)]
    model = detector(tmp_path / "d")
    first = score_domains(tmp_path / "out", domains, {"m": [model]}, show=False)

    def fail(*_, **__):
        raise AssertionError("worked out again")

    monkeypatch.setattr(pipeline, "run", fail)
    again = score_domains(tmp_path / "out", domains, {"m": [model]}, show=False)
    assert json.dumps(again) == json.dumps(first)
    assert (tmp_path / "out" / "domains.md").read_text().startswith("| F1 at the fixed threshold | m |")


def test_a_phantom_of_a_larger_shape_has_its_look_and_room_for_more_cells():
    usual, larger = phantom_domain(7), phantom_domain(7, shape_zyx=(12, 48, 40))
    assert (larger.name, larger.group, larger.tolerance_um) == (usual.name, usual.group, usual.tolerance_um)
    opened, before = larger.open(), usual.open()
    assert opened.volume.shape_zyx == (12, 48, 40)
    assert before.volume.shape_zyx == domain_volumes.PHANTOM_SHAPE
    assert opened.volume.voxel_um == before.volume.voxel_um
    np.testing.assert_array_equal(opened.boxes, [[0, 0, 0, 12, 48, 40]])


def test_a_marker_without_a_tolerance_is_refused(tmp_path):
    path, points = write_brain(tmp_path, "a", marker="TH")
    with pytest.raises(CanvasError, match="--tolerance-um TH=N"):
        labelled_domains([path], [points], None, {"cFos": 8.0})


def test_detectors_of_one_and_of_two_channels_are_scored_on_the_same_phantoms(tmp_path):
    domains = phantom_domains(2, autofluorescence=True)
    one, two = detector(tmp_path / "one"), detector(tmp_path / "two", channels=2)
    report = score_domains(
        tmp_path / "out", domains, {"one": [one], "two": [two]}, laplacian=False, show=False
    )
    assert report["protocol"]["autofluorescence"] is True
    assert all(set(method["domains"]) == {d.name for d in domains} for method in report["methods"].values())
    plain = phantom_domains(2)
    without = score_domains(tmp_path / "plain", plain, {"one": [one]}, laplacian=False, show=False)
    assert "autofluorescence" not in without["protocol"]
    assert plain[0].open().background is None
    with pytest.raises(CanvasError, match="give --background VOLUME"):
        score_domains(tmp_path / "o", plain, {"two": [two]}, laplacian=False, show=False)


def test_a_damaged_curve_is_worked_out_again(tmp_path):
    domains = labelled_domains(*zip(write_brain(tmp_path, "a"), strict=True), None, {"cFos": 8.0})
    model = {"m": [detector(tmp_path / "d")]}
    first = score_domains(tmp_path / "out", domains, model, laplacian=False, show=False)
    (kept,) = (tmp_path / "out" / "curves").iterdir()
    content = kept.read_bytes()
    for at in (0, 40, len(content) // 2, len(content) - 30):
        kept.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        assert score_domains(tmp_path / "out", domains, model, laplacian=False, show=False) == first
        assert kept.read_bytes() == content
