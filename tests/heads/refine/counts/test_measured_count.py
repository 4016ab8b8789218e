"""Counts measured on held-out brains: their ratio to the true cells, its width, and when they are taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.files.shipped import shipped
from canvas_fm.heads.refine.counts import measured_count as module
from canvas_fm.heads.refine.counts import refined_count
from canvas_fm.heads.refine.counts.candidate_recall import recall_of_refined
from canvas_fm.heads.refine.counts.count_interval import MeasuredCount, Recall, expected_count
from canvas_fm.heads.refine.counts.detection_statistics import DetectionStats, detection_stats
from canvas_fm.heads.refine.counts.measured_count import (
    NOT_REFINED,
    CountRecord,
    HeldOut,
    PartError,
    measured_count,
    shipped_counts,
)
from canvas_fm.heads.refine.counts.refined_count import count_refined, with_count, without_count
from canvas_fm.heads.refine.refiner import Refiner

REPORT = Path(__file__).parents[4] / "recipes" / "domains" / "counts.json"
USUAL = DetectionStats(0.3, 0.5, 1.0)


def volumes(ratios, all_stats=None, *, detections: int = 1000, prefix="brain") -> dict[str, HeldOut]:
    all_stats = [USUAL] * len(ratios) if all_stats is None else all_stats
    return {
        f"{prefix} {n}": HeldOut(detections, round(detections * ratio), DetectionStats(*map(float, stats)))
        for n, (ratio, stats) in enumerate(zip(ratios, all_stats, strict=True))
    }


def record(brains, others=None, *, refiners=("refiner",)) -> CountRecord:
    return CountRecord(
        made_by="detector", threshold=0.2, refiners=refiners, brains=brains, others=others or {},
        parts=PartError(1.0, 0.01), parts_of_others=PartError(4.0, 0.09),
    )  # fmt: skip


def detections(scores, **meta) -> Points:
    zyx = np.zeros((len(scores), 3)) + 100 * np.arange(len(scores))[:, None]
    stated = {"detector_sha256": "detector", "threshold": "0.2", "voxel_um": "6 1.62 1.62"}
    return Points(zyx, {"score": np.asarray(scores, np.float64)}, stated | meta)


@pytest.mark.parametrize("brains", [2, 8])
def test_the_interval_of_few_brains_holds_nine_of_ten_others(brains):
    random = np.random.default_rng(brains)
    held = []
    for _ in range(400):
        *known, other = np.exp(random.normal(0.1, 0.3, brains + 1))
        ratio = record(volumes(known)).ratio(USUAL)
        held.append(abs(np.log(other) - ratio.log) <= ratio.half)
    assert 0.86 < np.mean(held) < 0.97


def test_two_brains_that_agree_by_chance_do_not_give_a_count_to_the_cell():
    assert record(volumes([1.0, 1.0])).ratio(USUAL).half > 0.3


def test_detections_unlike_those_of_the_labelled_brains_go_by_all_volumes():
    """Further and further out, from the brains' own narrow error to that of all volumes."""
    random = np.random.default_rng(0)
    brains = volumes([0.8] * 8, [DetectionStats(0.3 + 0.01 * n, 0.5, 1.0) for n in range(8)])
    all_stats = np.stack([random.uniform(0.1, 0.9, 60), np.full(60, 0.5), np.full(60, 1.0)], axis=1)
    known = record(brains, volumes(np.exp(random.normal(0.7, 0.5, 60)), all_stats, prefix="phantom"))
    inside, between, outside = (known.ratio(DetectionStats(at, 0.5, 1.0)) for at in (0.33, 0.45, 0.6))
    assert (inside.alike, outside.alike) == (1.0, 0.0)
    assert 0 < between.alike < 1
    assert inside.half < between.half < outside.half
    assert inside.log == pytest.approx(np.log(0.8), abs=0.01)
    assert inside.log < between.log < outside.log
    assert (inside.parts, outside.parts) == (known.parts, known.parts_of_others)
    nowhere = known.ratio(DetectionStats(0.33, 0.5, np.nan))  # a file without a voxel size
    assert nowhere.alike == 0.0
    assert np.isfinite(nowhere.half)


def test_two_brains_are_no_range_yet():
    """The margin outside is wide of two brains and narrow of eight."""
    all_stats = [DetectionStats(at, 0.5, 1.0) for at in np.linspace(0, 1, 30)]
    others = volumes(np.exp(np.linspace(-1, 1, 30)), all_stats, prefix="phantom")
    near = DetectionStats(0.52, 0.5, 1.0)
    two = record(volumes([1.0] * 2, [DetectionStats(0.4, 0.5, 1.0)] * 2), others).ratio(near)
    eight = record(volumes([1.0] * 8, [DetectionStats(0.4, 0.5, 1.0)] * 8), others).ratio(near)
    assert two.alike == 1.0
    assert eight.alike < 0.3


def test_of_many_volumes_the_more_doubtful_and_the_sparser_have_wider_intervals():
    random = np.random.default_rng(0)
    all_stats = np.stack([random.uniform(0.1, 0.9, 80), np.full(80, 0.5), random.uniform(0, 4, 80)], axis=1)
    ratios = np.exp(random.normal(0, 1, 80) * all_stats[:, 0] * (5 - all_stats[:, 2]) / 5)
    known = record({}, volumes(ratios, all_stats, prefix="phantom"))
    sure, unsure, sparse = (
        known.ratio(DetectionStats(u, 0.5, k)).half for u, k in ((0.1, 4), (0.9, 4), (0.9, 0))
    )
    assert 1.3 * sure < unsure < sparse
    assert known.ratio(DetectionStats(5.0, 0.5, 4)) == known.ratio(
        DetectionStats(all_stats[:, 0].max(), 0.5, 4)
    )  # nor beyond


def test_of_many_volumes_the_interval_reaches_the_error_that_one_more_would_hold():
    """Conformal: of 20 errors the 19th, ceil(.9 (20 + 1)), each by the mean of the 19 others."""
    logs = np.linspace(0, 1, 20) ** 2
    ratio = record({}, volumes(np.exp(logs), detections=10**6, prefix="phantom")).ratio(USUAL)
    assert ratio.log == pytest.approx(logs.mean(), abs=1e-5)
    errors = np.array([abs(log - np.delete(logs, at).mean()) for at, log in enumerate(logs)])
    widths = np.log(errors + 0.05)
    normed = np.sort([error / np.exp(np.delete(widths, at).mean()) for at, error in enumerate(errors)])
    assert ratio.half == pytest.approx(normed[18] * np.exp(widths.mean()), abs=1e-4)
    assert normed[18] > 1.05 * normed[17]


def test_the_statistics_of_detections():
    above = np.array([0.1, 0.9, 0.99, 1.01, 5.0])
    scores = 1 / (1 + np.exp(-(np.log(0.2 / 0.8) + above)))
    points = Points(np.array([[0, 0, 0], [1, 0, 0], [0, 40, 0], [50, 0, 0], [90, 0, 0]]), {"score": scores},
                    {"voxel_um": "6 1.62 1.62"})  # fmt: skip
    stats = detection_stats(points, 0.2)
    assert stats.doubtful == 0.6
    assert stats.deviation == pytest.approx(above.std())
    assert stats.neighbours == pytest.approx(np.log(0.1 + (2 + 2 + 2 + 0 + 0) / 5))  # within 80 µm
    empty = detection_stats(Points(np.empty((0, 3)), {"score": np.empty(0)}, {"voxel_um": "1 1 1"}), 0.2)
    assert empty[:2] == (1.0, 0.0)
    assert np.isnan(detection_stats(Points(points.zyx, points.columns), 0.2).neighbours)


def test_all_cells_are_detections_times_the_ratio_and_p_cell_divides_them():
    known = record(volumes([1.5] * 8))
    p_cell = np.where(np.arange(200) < 100, 0.8, 0.2)
    measured = measured_count(detections([0.9] * 200), p_cell, "refiner", [known])
    count = expected_count(p_cell, None, measured)
    assert count.value == pytest.approx(300, rel=0.01)
    assert count.low < 300 < count.high
    assert expected_count(p_cell[:100], None, measured).value == pytest.approx(240, rel=0.01)


def test_a_part_is_wider_than_the_whole_and_the_smaller_the_wider():
    measured = MeasuredCount(1.0, 0.1, 8, per_cell=1.0, between=0.02, whole=1000.0)

    def half(n: int) -> float:
        count = expected_count(np.ones(n), None, measured)
        return float(np.log(count.high / count.value) / 1.6448536)

    assert half(1000) ** 2 == pytest.approx(0.1**2 + 1 / 1000)
    assert half(250) ** 2 == pytest.approx(0.1**2 + 1 / 250 + 0.02 * 0.75)
    assert half(4) ** 2 == pytest.approx(0.1**2 + 1 / 4 + 0.02 * 0.996)


def test_parts_of_doubtful_detections_vary_by_the_square_of_their_share():
    known = [record(volumes([1.0] * 8), refiners=(NOT_REFINED,))]
    sure, doubtful = (measured_count(detections(scores), None, NOT_REFINED, known).per_cell
                      for scores in ([0.9] * 98, [0.9] * 49 + [0.21] * 49))  # fmt: skip
    assert sure == pytest.approx((1 / 100) ** 2)  # of 98, and one more doubtful and one more sure
    assert doubtful == pytest.approx((50 / 100) ** 2)


def test_no_detections_are_not_surely_no_cells():
    known = [record(volumes([1.2] * 8), refiners=("refiner", NOT_REFINED))]
    none = measured_count(detections([]), np.empty(0), "refiner", known)
    count = expected_count(np.empty(0), None, none)
    one = expected_count(np.ones(1), None, measured_count(detections([0.9]), None, NOT_REFINED, known))
    assert (count.value, count.low) == (0, 0)
    assert 1 < count.high < one.high
    assert one.low < 1.2 < one.high
    recalled = expected_count(np.empty(0), None, Recall(0.9, 0.05, 3))
    assert recalled.high == pytest.approx(np.log(0.05) / np.log(0.1))  # .1 ** n is .05


def test_only_the_measured_pair_at_its_own_threshold_is_taken():
    known, points, p = [record(volumes([1.0] * 8))], detections([0.9] * 50), np.full(50, 0.9)
    assert measured_count(points, p, "refiner", known).brains == 8
    assert measured_count(points, p, "another", known) is None
    assert measured_count(points, None, NOT_REFINED, known) is None  # of refined detections alone
    for meta in ({"detector_sha256": "other", "threshold": "0.2"},
                 {"detector_sha256": "detector", "threshold": "0.1"}, {}):  # fmt: skip
        assert measured_count(Points(points.zyx, points.columns, meta), p, "refiner", known) is None
    assert measured_count(points, np.zeros(50), "refiner", known) is None  # nothing to scale


def test_a_refined_file_states_it_and_an_audit_goes_first(monkeypatch):
    measured = MeasuredCount(0.8, 0.1, 8, 0.5, 0.01, 56.2)
    monkeypatch.setattr(refined_count, "measured_count", lambda *_: measured)
    refiner = Refiner.load("refiner-cfos")
    points, p = detections([0.9] * 50), np.full(50, 0.9)
    count = count_refined(refiner, points, p)
    assert (count.of, count.recall, count.count.value) == ("cells", measured, pytest.approx(56.25))
    assert count.as_dict()["recall"] is None
    assert count.as_dict()["measured"]["brains"] == 8
    refined = Points(points.zyx, points.columns, points.meta | count.as_meta())
    assert recall_of_refined(refined) == measured
    del refined.meta["p_cell_per_cell_parts"]  # as earlier versions wrote it
    assert recall_of_refined(refined) == MeasuredCount(0.8, 0.1, 8)
    audited = count_refined(refiner, points, p, recall=(9, 10))
    assert isinstance(audited.recall, Recall)


def test_detections_alone_state_their_count_and_a_refiner_replaces_it(monkeypatch):
    known = (record(volumes([1.5] * 8), refiners=(NOT_REFINED,)),)
    monkeypatch.setattr(module, "shipped_counts", lambda: known)
    points = with_count(detections([0.9] * 200, unlike_calibration="its contrast"))
    assert points.meta["expected_cells"] == "300.0"
    low, high = map(float, points.meta["expected_cells_90"].split())
    assert low < 299 < high
    assert points.meta["count_of"] == "all cells if the recall of the training brains holds here"
    assert "canvas-fm audit" in points.meta["count_notes"]
    assert float(points.meta["detections_per_cell"]) == pytest.approx(1 / 1.5, rel=0.01)
    assert without_count(points.meta) == detections([], unlike_calibration="its contrast").meta
    refined = Points(points.zyx, points.columns | {"p_cell": np.full(200, 0.5)}, {})
    assert with_count(refined) is refined
    other = detections([0.9] * 200, threshold="0.1")
    assert with_count(other) is other


def test_detections_unlike_the_record_are_said_to_be():
    known = MeasuredCount(0.8, 0.5, 63, 0.5, 0.01, 56.2, alike=0.2)
    assert "all 63 volumes" in refined_count._dissimilarity_notes(known)[0]
    assert not refined_count._dissimilarity_notes(known._replace(alike=0.6))


def test_shipped_records_are_those_of_the_committed_report():
    report = json.loads(REPORT.read_bytes())
    recorded = [CountRecord.model_validate(record) for record in report["records"].values()]
    assert list(shipped_counts()) == recorded
    assert len(recorded) == 7
    ours = {json.loads((path / "config.json").read_bytes())["sha256"] for path in shipped("model").values()}
    assert {sha256 for of in recorded for sha256 in (of.made_by, *of.refiners) if sha256} <= ours


def test_the_committed_intervals_hold_in_seventeen_of_twenty_volumes_and_parts():
    summary = json.loads(REPORT.read_bytes())["summary"]
    assert {name for name, of in summary.items() if of["hold"] < 0.85} == set()
    assert len(summary) == 32
