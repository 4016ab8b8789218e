"""Counts measured on held-out brains: their ratio to the true cells, its width, and when they are taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.heads.refine.counts import refined_count
from canvas_fm.heads.refine.counts.candidate_recall import recall_of_refined
from canvas_fm.heads.refine.counts.count_interval import MeasuredCount, Recall, expected_count
from canvas_fm.heads.refine.counts.measured_count import (
    CountRecord,
    doubtful_share,
    measured_count,
    shipped_counts,
)
from canvas_fm.heads.refine.counts.refined_count import count_refined
from canvas_fm.heads.refine.refiner import Refiner

REPORT = Path(__file__).parents[4] / "recipes" / "domains" / "counts.json"


def record(ratios, *, counted: int = 1000, counted_by="detections", doubtful=None) -> CountRecord:
    names = [f"brain {n}" for n in range(len(ratios))]
    cells = {name: round(counted * ratio) for name, ratio in zip(names, ratios, strict=True)}
    shares = {} if doubtful is None else dict(zip(names, map(float, doubtful), strict=True))
    return CountRecord(
        made_by="detector", threshold=0.2, refiners=("refiner",), counted_by=counted_by,
        counted=dict.fromkeys(names, float(counted)), cells=cells, doubtful=shares,
    )  # fmt: skip


def detections(scores) -> Points:
    zyx = np.zeros((len(scores), 3)) + np.arange(len(scores))[:, None]
    return Points(zyx, {"score": np.asarray(scores)}, {"detector_sha256": "detector", "threshold": "0.2"})


@pytest.mark.parametrize("brains", [2, 8])
def test_the_interval_of_few_brains_holds_nine_of_ten_others(brains):
    random = np.random.default_rng(brains)
    held = []
    for _ in range(400):
        *known, other = np.exp(random.normal(0.1, 0.3, brains + 1))
        log, half = record(known).ratio(0.5)
        held.append(abs(np.log(other) - log) <= half)
    assert 0.86 < np.mean(held) < 0.97


def test_two_brains_that_agree_by_chance_do_not_give_a_count_to_the_cell():
    _, half = record([1.0, 1.0]).ratio(0.5)
    assert half > 0.3


def test_of_many_brains_those_with_more_doubtful_detections_have_wider_intervals():
    random = np.random.default_rng(0)
    doubtful = np.linspace(0.1, 0.9, 60)
    ratios = np.exp(random.normal(0, 1, 60) * doubtful)
    known = record(ratios, doubtful=doubtful)
    (_, sure), (_, unsure) = known.ratio(0.1), known.ratio(0.9)
    assert unsure > 2 * sure
    assert known.ratio(5.0) == known.ratio(0.9)  # not beyond what was seen


def test_of_many_brains_the_interval_reaches_the_error_that_one_brain_more_would_hold():
    """Split conformal: of 20 errors the 19th, ceil(.9 (20 + 1)), where all brains are as doubtful."""
    known = record(np.exp(np.linspace(-0.5, 0.4, 20)), counted=10**6, doubtful=np.full(20, 0.3))
    log, half = known.ratio(0.3)
    errors = np.sort(np.abs(np.linspace(-0.5, 0.4, 20) - log))
    assert half == pytest.approx(errors[18], abs=1e-5)


def test_a_detection_is_doubtful_within_one_log_odd_above_the_threshold():
    at = 1 / (1 + np.exp(-(np.log(0.2 / 0.8) + np.array([0.1, 0.9, 0.99, 1.01, 5.0]))))
    assert doubtful_share(at, 0.2) == 0.6
    assert doubtful_share(np.empty(0), 0.2) == 1.0


@pytest.mark.parametrize(("counted_by", "cells"), [("detections", 300), ("p_cell", 150)])
def test_all_cells_are_what_is_counted_times_the_ratio(counted_by, cells):
    known = record([1.5] * 8, counted_by=counted_by)
    p_cell = np.full(200, 0.5)
    measured = measured_count(detections([0.9] * 200), p_cell, "refiner", [known])
    count = expected_count(p_cell, None, measured)
    assert count.value == pytest.approx(cells, rel=0.01)
    assert count.low < cells < count.high
    assert expected_count(p_cell[:100], None, measured).value == pytest.approx(cells / 2, rel=0.01)


def test_only_the_measured_pair_at_its_own_threshold_is_taken():
    known, points, p = [record([1.0] * 8)], detections([0.9] * 50), np.full(50, 0.9)
    assert measured_count(points, p, "refiner", known).brains == 8
    assert measured_count(points, p, "another", known) is None
    for meta in ({"detector_sha256": "other", "threshold": "0.2"},
                 {"detector_sha256": "detector", "threshold": "0.1"}, {}):  # fmt: skip
        assert measured_count(Points(points.zyx, points.columns, meta), p, "refiner", known) is None
    assert measured_count(points, np.zeros(50), "refiner", known) is None  # nothing to scale


def test_a_refined_file_states_it_and_an_audit_goes_first(monkeypatch):
    measured = MeasuredCount(0.8, 0.1, 8)
    monkeypatch.setattr(refined_count, "measured_count", lambda *_: measured)
    refiner = Refiner.load("refiner-cfos")
    points, p = detections([0.9] * 50), np.full(50, 0.9)
    count = count_refined(refiner, points, p)
    assert (count.of, count.recall, count.count.value) == ("cells", measured, pytest.approx(56.25))
    assert count.as_dict()["recall"] is None
    assert count.as_dict()["measured"]["brains"] == 8
    refined = Points(points.zyx, points.columns, points.meta | count.as_meta())
    assert recall_of_refined(refined) == measured
    audited = count_refined(refiner, points, p, recall=(9, 10))
    assert isinstance(audited.recall, Recall)


def test_shipped_records_are_those_of_the_committed_report():
    report = json.loads(REPORT.read_bytes())
    recorded = [CountRecord.model_validate(report["records"][name]) for name in report["shipped"]]
    assert list(shipped_counts()) == recorded
    assert len(recorded) == 4
