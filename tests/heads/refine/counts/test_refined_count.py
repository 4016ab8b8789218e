"""Counts: of what they are, recall of candidates, few labels, and volumes that were trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.errors import BadInput
from canvas_fm.evaluation.detection.score import evaluate
from canvas_fm.files.shipped import find, shipped
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.counts.candidate_recall import (
    CandidateRecall,
    read_recalls,
    recall_of,
    recall_on_new_brain,
    shipped_recalls,
    training_recalls,
)
from canvas_fm.heads.refine.counts.count_interval import CountSpread, Recall, expected_count
from canvas_fm.heads.refine.counts.refined_count import count_refined
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.detect import detect, detector_job
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import load, save_detector
from tests.heads.conftest import VOXEL_UM, spots
from tests.heads.made_up import cells


def test_a_count_of_all_cells_covers_nine_brains_of_ten():
    """Recall differs from brain to brain: known on ten brains, it is used on two hundred others."""
    random = np.random.default_rng(0)

    def brain(cells: int = 300) -> tuple[np.ndarray, int]:
        found = random.binomial(cells, np.clip(random.normal(0.9, 0.05), 0, 1))
        return np.concatenate([np.full(found, 0.95), np.full(found // 10, 0.05)]), cells

    known = [(int((p > 0.5).sum()), n) for p, n in (brain() for _ in range(10))]
    recall = Recall.of(*zip(*known, strict=True))
    assert recall.value == pytest.approx(0.9, abs=0.04)
    held = []
    for _ in range(200):
        p, true = brain()
        count = expected_count(p, None, recall)
        held.append(count.low <= true <= count.high)
        assert expected_count(p).high <= len(p)
    assert 0.85 < np.mean(held) <= 1
    narrow = [expected_count(brain()[0]) for _ in range(100)]
    assert np.mean([one.low <= 300 <= one.high for one in narrow]) < 0.3


def test_recall_of_few_cells_and_of_one_brain_stays_open():
    assert Recall.of([10], [10]).spread > Recall.of([1000], [1000]).spread
    assert Recall.of([10], [10]).value < 1
    assert Recall.of([90, 60], [100, 100]).spread > 3 * Recall.of([75, 75], [100, 100]).spread
    for found, whole in (([5], [4]), ([], []), ([1, 2], [3]), ([0], [0]), ([-1], [3])):
        with pytest.raises(BadInput):
            Recall.of(found, whole)


def test_one_brain_says_less_of_the_next_brains_recall_than_many_that_agree():
    many = recall_on_new_brain([900] * 8, [1000] * 8)
    one = recall_on_new_brain([900], [1000])
    assert one.value == pytest.approx(many.value, abs=0.001)
    assert many.spread < 0.01 < 0.2 < one.spread < 0.21
    # A brain whose recall lies two such deviations off in its logarithm is just held.
    assert one.value * np.exp(-2 * one.spread) < 0.61


def test_few_labels_leave_the_count_open_and_many_of_several_brains_do_not():
    p = np.linspace(0.02, 0.98, 50)
    few = CountSpread().with_few_labels(p, other_brains=True)
    many = CountSpread().with_few_labels(np.tile(p, 200), other_brains=True)
    alone = CountSpread().with_few_labels(np.tile(p, 200), other_brains=False)
    assert few.log_odds > 10 * many.log_odds
    assert alone.log_odds > 10 * many.log_odds
    asked = np.full(1000, 0.2)
    counts = [expected_count(asked, spread) for spread in (many, few, alone)]
    widths = [count.high - count.low for count in counts]
    assert widths[0] < 0.6 * min(widths[1:])
    assert all(count.value == pytest.approx(200) for count in counts)


@pytest.fixture
def refiner(tmp_path) -> Refiner:
    features, is_cell = cells()
    one = Refiner(C=0.01).fit(features, is_cell)
    one.recalls_ = [
        CandidateRecall(made_by="d" * 64, threshold=0.2, found={"a": 96, "b": 84}, cells={"a": 100, "b": 98})
    ]
    one.save(tmp_path / "refiner", {"trained_on": {"brain 0": {}}})
    return Refiner.load(tmp_path / "refiner")


def candidates(n: int = 100, **meta: str) -> Points:
    return Points(np.zeros((n, 3)), {}, {"volume": "new", "detector_sha256": "d" * 64} | meta)


def test_it_is_of_all_cells_where_recall_is_recorded_and_of_candidates_elsewhere(refiner):
    p = np.full(100, 0.9)
    known = count_refined(refiner, candidates(threshold="0.2"), p)
    assert known.of == "cells"
    assert known.count.value == pytest.approx(90 / known.recall.value)
    assert known.count.high > 100 >= known.among_candidates.high
    for points in (
        candidates(threshold="0.3"),
        candidates(),
        candidates(threshold="0.2", detector_sha256="e"),
    ):
        unknown = count_refined(refiner, points, p)
        assert unknown.as_dict()["count_of"] == "cells among the candidates"
        assert "--recall FOUND CELLS" in unknown.notes[-1]
    audit = count_refined(refiner, candidates(threshold="0.3"), p, recall=(40, 80))
    assert audit.count.value == pytest.approx(180, rel=0.02)


def test_a_recall_of_brains_that_look_otherwise_is_not_taken_for_known(refiner):
    p = np.full(100, 0.9)
    alike = count_refined(refiner, candidates(threshold="0.2"), p)
    unlike = count_refined(refiner, candidates(threshold="0.2", unlike_calibration="its contrast"), p)
    assert unlike.count == alike.count
    assert unlike.as_meta()["count_of"] == "all cells if the recall of the training brains holds here"
    assert "(its contrast)" in unlike.notes[0]
    audit = count_refined(refiner, candidates(threshold="0.2", unlike_calibration="x"), p, recall=(40, 80))
    assert audit.count_of == alike.count_of == "all cells"


def test_candidates_cut_at_the_detectors_own_threshold_are_noticed(refiner):
    p = np.full(10, 0.9)
    cut = count_refined(refiner, candidates(10, threshold="0.3", operating_threshold="0.3"), p)
    assert "cut at 0.3 (the detector's own threshold):" in cut.notes[0]
    above = count_refined(refiner, candidates(10, threshold="0.3", operating_threshold="0.25"), p)
    assert "cut at 0.3 (the detector's own threshold is 0.25):" in above.notes[0]
    corrected = count_refined(refiner, candidates(10, threshold="0.2", operating_threshold="0.2"), p)
    assert corrected.of == "cells"
    assert not any("were cut" in note for note in corrected.notes)
    low = count_refined(refiner, candidates(10, threshold="0.02", operating_threshold="0.2"), p)
    assert not any("own threshold" in note for note in low.notes)


def test_what_it_was_trained_on_is_said(refiner):
    seen = count_refined(refiner, candidates(threshold="0.2"), np.ones(1), volume="brain 0")
    assert "the refiner was trained on the volume 'brain 0', and is applied to it here" in seen.notes
    crop = count_refined(refiner, candidates(threshold="0.2"), np.ones(1), volume="crop", crop_of="brain 0")
    assert any("the volume 'brain 0', of which 'crop' is a crop" in note for note in crop.notes)
    other = count_refined(refiner, candidates(threshold="0.2"), np.ones(1), volume="crop", crop_of="brain 1")
    assert not any("trained on" in note for note in other.notes)
    detected = candidates(threshold="0.2", detector_trained_on_volume="yes")
    assert (
        "the detector of the candidates was trained on the volume 'new'"
        in count_refined(refiner, detected, np.ones(1)).notes
    )
    truth = Points(np.ones((1, 3)))
    score = evaluate(detected, truth, tolerance_voxels=2)
    assert any(
        "the detector was trained on the volume 'new', which is scored here" in one for one in score.warnings
    )
    assert not evaluate(candidates(), truth, tolerance_voxels=2).warnings[1:]


def test_detect_says_that_its_model_was_trained_on_the_volume(brains, tmp_path, caplog):
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    about = {"voxel_um": VOXEL_UM, "threshold": 0.5, "min_distance_um": 6}
    own = save_detector(tmp_path / "own", net, **about, provenance={"trained_on": [{"name": "a"}]})
    found = detect(own, brains[0][0], device="cpu", show=False)
    assert found.meta["detector_trained_on_volume"] == "yes"
    assert "own was trained on the volume 'a'" in caplog.text
    assert found.meta["operating_threshold"] == "0.5"
    assert "detector_trained_on_volume" not in detect(own, brains[1][0], device="cpu", show=False).meta


@pytest.mark.parametrize("crop_of", [None, "a"])
@pytest.mark.parametrize("provenance", [{}, {"trained_on": [{"name": "a"}]}], ids=["other", "saw a"])
@pytest.mark.parametrize("stated", [{}, {"detector_trained_on_volume": "yes"}], ids=["", "stated"])
def test_recall_on_what_the_detector_saw_is_not_recorded(crop_of, provenance, stated, tmp_path):
    volume, points = spots(tmp_path / ("crop.zarr" if crop_of else "a.zarr"), 0)
    if crop_of:
        (tmp_path / "meta.json").write_text('{"cube": "cubes/a"}', encoding="utf-8")
    points = Points(points.zyx, points.columns, {"detector_sha256": "f" * 64, **stated})
    (brain,) = label_brains([volume], [points], truth=[points], tolerance_um=4.0)
    assert bool(training_recalls([brain], provenance)) == (not provenance and not stated)


def test_a_volume_and_its_crop_are_one_brain_to_a_fit(brains, tmp_path, detector, caplog):
    crop, candidates = spots(tmp_path / "crop.zarr", 0)
    (tmp_path / "meta.json").write_text('{"cube": "cubes/a"}', encoding="utf-8")
    (a, of_a), (b, of_b) = brains[:2]
    labelled = label_brains([a, b, crop], [of_a, of_b, candidates], labels="label")
    assert "a and crop hold voxels of one volume (a) and are held out together" in caplog.text
    extractor = Extractor(detector=detector, device="cpu")
    refiner = Refiner("detector", C=0.01)
    report = fit_labelled(refiner, labelled, extractor, tmp_path / "refiner", show=False)
    assert set(report["cross_validation"]["brains"]) == {"a + crop", "b"}
    assert set(report["brains"]) == {"a", "b", "crop"}
    loaded = Refiner.load(tmp_path / "refiner")
    assert loaded.fit_provenance_["trained_on"]["crop"]["crop_of"] == "a"


@pytest.mark.parametrize(("sample", "trained"), [("cfos", "yes"), ("microglia", None)])
def test_a_sample_is_known_by_the_cube_that_it_was_cut_from(sample, trained):
    """The shipped c-Fos models saw cube 695 and no microglia model saw 7095."""
    volume = cf.sample(sample).volume
    assert volume.crop_of == Path(cf.sample(sample).about["cube"]).name
    for models in ("all", sample):
        job = detector_job(load(find("model", f"detector-{models}"), kind="detector"), volume)
        assert job.meta.get("detector_trained_on_volume") == trained
        refiner = Refiner.load(find("model", f"refiner-{models}"))
        count = count_refined(refiner, candidates(), np.ones(1), volume=volume.name, crop_of=volume.crop_of)
        noted = any("the volume '695', of which 'cfos' is a crop" in note for note in count.notes)
        assert noted == (trained == "yes")


def test_a_forced_split_carries_its_doubt_into_file_and_command_line(shape_volumes, tmp_path, capsys):
    volume, points, _ = shape_volumes[0]
    some = Points(points.zyx[:40], {name: values[:40] for name, values in points.columns.items()})
    cf.fit_refiner(
        [volume], [some], tmp_path / "refiner", labels="label", shape=True, head="trees",
        force_random_split=True, show=False,
    )  # fmt: skip
    other = shape_volumes[1]
    other[1].write(tmp_path / "candidates.csv")
    apply = [
        "refine",
        "apply",
        str(tmp_path / "refiner"),
        str(other[0].path),
        str(tmp_path / "candidates.csv"),
    ]
    assert main([*apply, "--out", str(tmp_path / "cells.csv"), "--json", "--recall", "45", "50"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["count_of"] == "all cells"
    assert any("rows split at random because it was forced" in note for note in said["notes"])
    low, high = said["interval_90"]
    assert high - low > 0.5 * said["expected_cells"]
    meta = Points.read(tmp_path / "cells.csv").meta
    assert meta["expected_cells_90"] == f"{low:.1f} {high:.1f}"
    assert meta["count_of"] == "all cells"


def test_recalls_are_read_from_a_file_and_recorded_of_training_candidates(shape_volumes, tmp_path):
    path = tmp_path / "recalls.json"
    path.write_text(
        json.dumps([{"made_by": "f" * 64, "threshold": 0.3, "found": {"x": 9}, "cells": {"x": 10}}])
    )
    volumes, tables, truth = map(list, zip(*shape_volumes[:2], strict=True))
    tables = [
        Points(one.zyx, one.columns, {"detector": "log, sigma 5 um", "threshold": "0.1"}) for one in tables
    ]
    cf.fit_refiner(
        volumes, tables, tmp_path / "refiner", labels="label", truth=truth, tolerance_um=6.0, shape=True,
        head="trees", recalls=path, show=False,
    )  # fmt: skip
    own, given = Refiner.load(tmp_path / "refiner").recalls_
    assert given == read_recalls(path)[0]
    assert (own.made_by, own.threshold) == ("log, sigma 5 um", 0.1)
    assert all(own.cells[name] - own.found[name] == 3 for name in ("a", "b"))
    assert recall_of([own], tables[0]).brains == 2
    path.write_text('[{"made": 1}]')
    with pytest.raises(BadInput, match="holds no recalls"):
        read_recalls(path)


def test_recalls_of_shipped_detectors_are_those_of_the_committed_reports():
    """Each is of models of the same recipe that had not seen the brain, at their own fixed threshold."""
    reports = Path(__file__).parents[4] / "recipes" / "domains"
    methods = {
        "detector-microglia": ("microglia", "detector-microglia-folds", None),
        "detector-microglia-2": ("microglia_before", "detector-microglia-folds", None),
        "detector-microglia-1": ("phantoms_alone", "old-microglia", {"1874", "4923", "6742", "7095"}),
        "detector-cfos": ("cfos", "detector-cfos-folds", None),
        "detector-cfos-2": ("cfos_before", "detector-cfos-folds", None),
        "detector-phantoms": ("phantoms", "phantoms", None),
        "detector-phantoms-2": ("phantoms", "before", None),
        "detector-phantoms-1": ("phantoms_alone", "phantoms", None),
    }
    by_sha = {}
    for path in (shipped("model") | shipped("older model")).values():
        by_sha[json.loads((path / "config.json").read_bytes())["sha256"]] = path.name
    for record in shipped_recalls():
        name = by_sha[record.made_by]
        report, method, only = methods[name]
        domains = json.loads((reports / f"{report}.json").read_bytes())["methods"][method]["domains"]
        judged = {
            brain: one
            for brain, one in domains.items()
            if not brain.startswith("phantom ") and brain != "4150" and (only is None or brain in only)
        }
        assert record.found == {brain: one["tp"] for brain, one in judged.items()}
        assert record.cells == {brain: one["tp"] + one["fn"] for brain, one in judged.items()}
    assert len(shipped_recalls()) == len(methods)
