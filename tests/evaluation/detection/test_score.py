"""The score: counts by hand, every threshold against starting anew, chance, intervals, and odd input."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from canvas_fm.data.points.boxes import as_boxes, read_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection import score as score_module
from canvas_fm.evaluation.detection.confusion_counts import Counts, intervals, pooled
from canvas_fm.evaluation.detection.curve import score_curve
from canvas_fm.evaluation.detection.matching import greedy_of
from canvas_fm.evaluation.detection.pairs import find_pairs
from canvas_fm.evaluation.detection.score import evaluate
from canvas_fm.evaluation.detection.tolerance import MARKER_TOLERANCE

VOXEL_UM = (4.0, 1.8, 1.8)


def line(*places, scores=None):
    """Points along x; far apart unless said otherwise."""
    zyx = np.zeros((len(places), 3))
    zyx[:, 2] = places
    return Points(zyx, {} if scores is None else {"score": np.array(scores, np.float64)})


def test_every_figure_of_a_case_worked_out_by_hand():
    found = evaluate(line(0, 101, 500), line(0, 100, 200, 300), tolerance_voxels=2)
    assert found.counts == Counts(tp=2, fp=1, fn=2)
    assert found.counts.accuracy == 2 / 5
    assert found.counts.precision == 2 / 3
    assert found.counts.recall == 1 / 2
    assert found.counts.f1 == 4 / 7
    assert found.counts.count_error == -1 / 4
    assert found.mean_distance == 0.5
    assert found.right.tolist() == [True, True, False]
    assert found.false.tolist() == [False, False, True]
    assert found.missed.tolist() == [False, False, True, True]


def test_f1_and_accuracy_are_bound_as_in_the_papers_table():
    for counts in (Counts(5, 2, 1), Counts(1, 9, 3), Counts(0, 1, 1)):
        assert counts.f1 == pytest.approx(2 * counts.accuracy / (1 + counts.accuracy))


def test_totals_add_cells_and_do_not_average_regions():
    assert pooled([Counts(1, 0, 0), Counts(10, 10, 10)]) == Counts(11, 10, 10)
    assert pooled([]) == Counts(0, 0, 0)


# --- tolerance


def test_voxels_and_micrometres_differ_where_voxels_are_not_cubes():
    pred, truth = np.array([[5.0, 0, 0], [0, 100, 5]]), np.array([[0.0, 0, 0], [0, 100, 0]])
    voxels = evaluate(pred, truth, voxel_um=VOXEL_UM, tolerance_voxels=5)
    assert voxels.counts.tp == 2
    assert voxels.in_um == (9.0, Counts(1, 1, 1))
    assert evaluate(pred, truth, voxel_um=VOXEL_UM, tolerance_um=9.0).counts == Counts(1, 1, 1)


def test_the_papers_tolerances_by_marker():
    assert MARKER_TOLERANCE == {"NeuN": 6, "cFos": 6, "TH": 8, "PV": 8, "GFAP": 8, "IBA1": 5}
    for name, value in [("NeuN", 6), ("c-Fos", 6), ("Iba1", 5), ("gfap", 8)]:
        at, beyond = line(0, 100 + value), line(0, 100 + value + 0.01)
        assert evaluate(at, line(0, 100), marker=name).counts.tp == 2
        assert evaluate(beyond, line(0, 100), marker=name).counts.tp == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "tolerances given: none; expected one of"),
        ({"marker": "TH", "tolerance_voxels": 3}, "tolerances given: voxels, marker; expected one"),
        ({"tolerance_um": 8}, "needs the voxel size"),
        ({"marker": "neunn"}, r"marker 'neunn'; did you mean NeuN\?"),
        ({"marker": "DAPI"}, r"marker 'DAPI'; known: NeuN, cFos"),
        ({"tolerance_voxels": -1}, "tolerance is -1"),
        ({"tolerance_um": 8, "voxel_um": (4, 1.8)}, "voxel_um is .*; expected three"),
        ({"tolerance_voxels": 3, "within": [[0, 0, 0, 0, 1, 1]]}, "each end has to lie beyond"),
        ({"tolerance_voxels": 3, "threshold": 0.5}, "have no column score, p_cell, log_score"),
        ({"tolerance_voxels": 3, "score_column": "height"}, "have no column 'height'; they have none"),
    ],
)
def test_what_no_score_can_be_made_of(given, sentence):
    with pytest.raises(CanvasError, match=sentence):
        evaluate(line(0), line(0), **given)


# --- boxes


def test_cells_at_the_border_of_a_box_are_matched_across_it():
    boxes = [[0, 0, 0, 1, 1, 100]]
    truth = line(50, 99, 102, 180)
    pred = line(50, 100, 98.9 + 1.5, 180, 99.2 - 20)
    found = evaluate(pred, truth, tolerance_voxels=2, within=boxes)
    # 99 is found though its prediction lies outside; 79.2 is false; what lies outside is not counted.
    assert found.counts == Counts(tp=2, fp=1, fn=0)
    # A prediction inside that belongs to a cell just outside is neither right nor false.
    assert evaluate(line(99), line(101), tolerance_voxels=2, within=boxes).counts == Counts(0, 0, 0)


def test_counts_by_box_are_those_of_each_box_alone_and_add_up():
    random = np.random.default_rng(0)
    truth = random.random((200, 3)) * 100
    pred = truth + random.normal(0, 1, truth.shape)
    boxes = as_boxes([[0, 0, 0, 50, 100, 100], [50, 0, 0, 100, 100, 50], [50, 0, 50, 100, 100, 100]])
    found = evaluate(pred, truth, tolerance_voxels=2, within=boxes)
    alone = [evaluate(pred, truth, tolerance_voxels=2, within=box[None]).counts for box in boxes]
    assert list(found.box_counts) == alone
    assert found.counts == pooled(alone)


def test_real_candidates_score_as_their_makers_say(real_data):
    for cube, best in (("delivr_cFos/695", 0.82), ("delivr_cFos/1008", 0.58)):
        folder = real_data / cube
        pred, truth = Points.read(folder / "candidates.csv"), Points.read(folder / "centroids.csv")
        boxes = read_boxes(folder / "meta.json")
        found = evaluate(pred, truth, voxel_um=(6, 1.62, 1.62), tolerance_um=8, within=boxes)
        assert found.curve.best[1] == pytest.approx(best, abs=0.01)


# --- thresholds


def test_counts_at_every_threshold_are_those_of_starting_anew():
    for seed in range(40):
        random = np.random.default_rng(seed)
        n, m = random.integers(0, 30, 2).tolist()
        pred, truth = random.random((n, 3)) * 6, random.random((m, 3)) * 6
        scores = random.random(n)
        if seed % 2:
            pred, truth, scores = np.round(pred), np.round(truth), np.round(scores, 1)
        pairs = find_pairs(pred, truth, tolerance=2.0, scale_zyx=(1, 1, 1))
        inside = [p[:, 2] < 3 + seed % 4 for p in (pred, truth)]
        curve = score_curve(pairs, scores, *inside)
        assert curve.threshold.tolist() == sorted(set(scores.tolist()), reverse=True)
        for at, tp, fp in zip(curve.threshold, curve.tp, curve.fp, strict=True):
            anew = greedy_of(pairs.where(scores[pairs.pred] >= at), n, m)
            alone = (scores >= at) & inside[0] & ~np.isin(np.arange(n), anew.pred)
            assert (tp, fp) == (inside[1][anew.truth].sum(), alone.sum())


def test_the_threshold_keeps_rows_at_or_above_it_and_average_precision_sees_all():
    pred, truth = line(0, 100, 200, 300, scores=[0.9, 0.5, 0.5, 0.1]), line(0, 100, 300)
    found = evaluate(pred, truth, tolerance_voxels=2, threshold=0.5)
    assert found.counts == Counts(2, 1, 1)
    assert len(found.points) == 3
    by_hand = (1 / 3) * 1 + (1 / 3) * (2 / 3) + (1 / 3) * (3 / 4)
    assert found.average_precision == pytest.approx(by_hand)
    assert found.curve.best == (0.1, pytest.approx(6 / 7))
    assert evaluate(pred, truth, tolerance_voxels=2).counts == Counts(3, 1, 0)


def test_a_perfect_ranking_has_average_precision_one_and_none_without_scores():
    truth = line(*range(0, 1000, 50))
    pred = line(*range(0, 1000, 50), *range(2025, 2500, 50), scores=np.r_[np.ones(20), np.zeros(10)])
    assert evaluate(pred, truth, tolerance_voxels=2).average_precision == 1
    assert evaluate(line(0), truth, tolerance_voxels=2).average_precision is None


@pytest.mark.parametrize(("column", "sentence"), [([0.5, np.nan], "row 2"), (["a", "b"], "holds text")])
def test_scores_have_to_be_numbers(column, sentence):
    pred = Points(line(0, 100).zyx, {"score": np.array(column)})
    with pytest.raises(CanvasError, match=sentence):
        evaluate(pred, line(0), tolerance_voxels=2)


# --- optimal, chance, intervals


def test_the_optimal_matching_stands_beside_the_greedy_one(monkeypatch):
    pred, truth = line(0, 3), line(2, 7)
    found = evaluate(pred, truth, tolerance_voxels=4)
    assert (found.counts.tp, found.optimal.tp) == (1, 2)
    monkeypatch.setattr(score_module, "_LARGE_GROUP", 1)
    large = evaluate(pred, truth, tolerance_voxels=4)
    assert large.optimal is None
    assert any("too large for the optimal matching" in warning for warning in large.warnings)


def test_chance_is_what_the_density_predicts():
    random = np.random.default_rng(1)
    truth = random.random((400, 3)) * 96 + 2
    found = evaluate(random.random((2000, 3)) * 99, truth, tolerance_voxels=3, shape_zyx=(100, 100, 100))
    # Each cell is hit unless all 2,000 miss its ball; balls hardly overlap at this density.
    expected = 400 * (1 - np.exp(-2000 * 4 / 3 * np.pi * 27 / 1e6))
    assert found.chance.tp == pytest.approx(expected, rel=0.07)
    assert found.chance.region == "the volume"
    assert found.chance.predictions == 2000
    assert found.counts.tp == pytest.approx(expected, rel=0.5)


def test_chance_is_not_drawn_from_the_numbers_that_made_the_data():
    for n in (900, 901, 902, 1800):
        truth = np.random.default_rng(0).random((n, 3)) * 100
        found = evaluate(truth, truth, tolerance_voxels=0.5, shape_zyx=(101, 101, 101), seed=0)
        assert found.chance.tp < 5


def test_chance_counts_what_lies_in_the_boxes_and_is_the_same_for_the_same_seed():
    random = np.random.default_rng(1)
    truth = random.random((300, 3)) * 50
    boxes = [[0, 0, 0, 25, 50, 50]]
    a, b = (evaluate(truth, truth, tolerance_voxels=3, within=boxes, seed=3).chance for _ in range(2))
    assert a == b
    assert a.predictions == int(((truth[:, 0] < 24.5) & (truth < 49.5).all(axis=1)).sum())
    assert a.region == "the boxes"


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    p_tp, p_fp, p_fn = 0.6, 0.25, 0.15
    true_f1 = 2 * p_tp / (2 * p_tp + p_fp + p_fn)
    covered = 0
    for trial in range(200):
        counts = random.multinomial(300, [p_tp, p_fp, p_fn])
        low, high = intervals(counts[None].astype(np.int64), seed=trial).of["f1"]
        covered += low <= true_f1 <= high
    assert 180 <= covered <= 198


def test_intervals_are_over_boxes_where_there_are_five_and_say_so():
    parts = np.array([[10, 0, 0], [0, 10, 10]] * 3, dtype=np.int64)
    by_box = intervals(parts)
    assert by_box.over == "6 boxes"
    assert intervals(parts[:4]).over == "cells"
    width = {len(p): np.ptp(intervals(p).of["f1"]) for p in (parts, parts.sum(0, keepdims=True))}
    assert width[6] > 2 * width[1]


# --- odd input


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_empty_predictions_or_truth_give_a_score_and_a_sentence(n, m):
    found = evaluate(np.zeros((n, 3)), np.zeros((m, 3)) + [[0, 0, 9.0]] * m if m else [], tolerance_voxels=2)
    assert found.counts == Counts(0, n, m)
    assert found.counts.f1 == (None if n == m == 0 else 0.0)
    assert any("empty" in warning for warning in found.warnings)
    json.dumps(found.to_json(), allow_nan=False)


def test_predictions_in_another_order_or_unit_are_named():
    random = np.random.default_rng(0)
    truth = random.random((300, 3)) * [60, 400, 500]
    near = truth + random.normal(0, 0.5, truth.shape)
    options = {"voxel_um": VOXEL_UM, "tolerance_um": 8}
    for name, pred in (
        ("x, y, z:", near[:, ::-1]),
        ("z, x, y:", near[:, [0, 2, 1]]),
        ("z, y, x in micrometres:", near * VOXEL_UM),
    ):
        found = evaluate(pred, truth, **options, chance=False)
        assert any(f"would match far better as {name} F1 1.00" in text for text in found.warnings), (
            found.warnings
        )
    assert evaluate(near, truth, **options).warnings == ()
    assert evaluate(random.random((300, 3)) * [60, 400, 500], truth, **options).warnings == ()


def test_duplicates_and_points_outside_are_counted_in_a_sentence(caplog):
    pred = line(0, 0, 100, 100, 100, 900)
    with caplog.at_level(logging.WARNING):
        found = evaluate(pred, line(0, 100, -5), tolerance_voxels=2, shape_zyx=(1, 1, 500))
    assert found.counts == Counts(2, 4, 1)
    assert "3 of 6 rows of the predictions repeat a position" in caplog.text
    assert "1 of 6 rows of the predictions lie outside the volume (1, 1, 500)" in found.warnings[1]
    assert "1 of 3 rows of the truth lie outside" in caplog.text


def test_boxes_that_hold_nothing_are_named():
    found = evaluate(line(0), line(0), tolerance_voxels=2, within=[[50, 0, 0, 60, 9, 9]])
    assert "none of the 1 row of the truth lies in the boxes" in found.warnings[-1]


def test_rows_that_are_no_cells_are_left_out_and_counted():
    zyx = line(0, 100, 200).zyx
    typed = Points(zyx, {"type": np.array([2, 1, 2])})
    found = evaluate(typed, Points(zyx, {"label": np.array([1, 0, -1])}), tolerance_voxels=2)
    assert found.counts == Counts(1, 1, 0)
    assert "1 of 3 rows of the predictions have cellfinder's type 1" in found.warnings[0]
    assert "2 of 3 rows of the truth have a label of 0 or −1" in found.warnings[1]
    unclassified = evaluate(Points(zyx, {"type": np.array([1, 1, 1])}), zyx, tolerance_voxels=2)
    assert unclassified.counts.tp == 3
    assert "not classified" in unclassified.warnings[0]
    with pytest.raises(CanvasError, match="none of the 3 rows of the truth is a cell"):
        evaluate(zyx, Points(zyx, {"type": np.array([1, 1, 1])}), tolerance_voxels=2)


def test_a_candidates_own_label_is_not_looked_at_in_predictions():
    labelled = Points(line(0, 100).zyx, {"label": np.array([1, 0])})
    assert evaluate(labelled, line(0), tolerance_voxels=2).counts == Counts(1, 1, 0)


def test_positions_that_are_no_numbers_are_refused():
    with pytest.raises(CanvasError, match="not finite"):
        evaluate([[0, 0, np.nan]], [[0, 0, 0]], tolerance_voxels=2)


def test_the_json_holds_no_position():
    truth = Points(np.array([[12.0, 34.0, 567.25]]))
    text = json.dumps(evaluate(truth, truth, tolerance_voxels=2).to_json(), allow_nan=False)
    assert "567" not in text


def test_greedy_by_steps_is_the_greedy_of_all():
    random = np.random.default_rng(5)
    pred, truth = np.round(random.random((300, 3)) * 15), np.round(random.random((300, 3)) * 15)
    pairs = find_pairs(pred, truth, tolerance=2.5, scale_zyx=(1, 1, 1))
    every = np.ones(300, bool)
    curve = score_curve(pairs, random.random(300), every, every)
    assert curve.tp[-1] == len(greedy_of(pairs, 300, 300).pred)


def test_what_a_refiner_wrote_is_scored_by_its_decision():
    columns = {"score": np.array([0.1, 0.2, 0.9]), "p_cell": np.array([0.9, 0.6, 0.2], np.float32)}
    refined = Points(line(0, 100, 500).zyx, columns, {"p_cell_threshold": "0.5"})
    truth = line(0, 100, 200)
    found = evaluate(refined, truth, tolerance_voxels=2)
    assert (found.counts, found.threshold) == (Counts(tp=2, fp=0, fn=1), 0.5)
    assert found.average_precision == pytest.approx(2 / 3)
    assert evaluate(refined, truth, tolerance_voxels=2, threshold=0.8).counts == Counts(tp=1, fp=0, fn=2)
    named = evaluate(refined, truth, tolerance_voxels=2, score_column="score", threshold=0.8)
    assert named.counts == Counts(tp=0, fp=1, fn=3)


def test_labels_in_words_are_told_of(caplog):
    zyx = np.arange(12.0).reshape(4, 3)
    truth = Points(zyx, {"label": np.array(["yes", "no", "no", "yes"])})
    evaluate(Points(zyx), truth, tolerance_voxels=1)
    assert "`label` holds texts (yes, no)" in caplog.text


@pytest.mark.parametrize("box", [[True, 0, 0, 5, 5, 5], [[0, 0, 0, 5, 5, True]]])
def test_true_is_no_end_of_a_box(box):
    with pytest.raises(CanvasError, match="in whole voxels"):
        as_boxes(box)
