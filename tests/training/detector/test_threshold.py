"""The threshold of a detector: every marker the same weight, scores of held-out volumes."""

from __future__ import annotations

import pytest

from canvas_fm.errors import CanvasError
from canvas_fm.models.checkpoint import load
from canvas_fm.training.detector import threshold
from tests.training.detector.cubes import tiny, train, write_cube


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


def test_fold_detectors_that_saw_all_or_detect_otherwise_are_refused(labelled_cubes, tmp_path):
    without_a = load(train(labelled_cubes, tmp_path / "a", held_out=["a"]).detector)
    with pytest.raises(CanvasError, match="every fold detector was trained on b; give one"):
        train(labelled_cubes, tmp_path / "run", fold_detectors=[without_a])
    smoother = tiny(detection__smooth_um=2.0)
    with pytest.raises(CanvasError, match=r"has smooth_um 1.0, the recipe 2.0"):
        train(labelled_cubes, tmp_path / "run", smoother, fold_detectors=[without_a])
