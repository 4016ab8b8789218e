"""Audits of known populations: the estimates by hand, their coverage, and what a table may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.boxes import inside_boxes, whole
from canvas_fm.data.points.points import Points
from canvas_fm.errors import BadInput
from canvas_fm.heads.review.audit.answers import audit_of
from canvas_fm.heads.review.audit.audit_flags import AuditOptions
from canvas_fm.heads.review.audit.estimate import (
    StratifiedAnswers,
    estimate_audit,
    estimate_share,
    estimate_total,
)
from canvas_fm.heads.review.audit.sample import ANSWER, BOX, CORNERS, KIND, STRATUM, box_grid, draw_audit
from canvas_fm.heads.review.audit.strata import allocate, quantile_strata
from tests.heads.review.made_up import SHAPE, VOXEL_UM, audited, population

SMALL = population(5, 400, 0.7, 150, 8)
RARE = population(6, 300, 1.2, 5, 20)


@pytest.mark.parametrize("cells", [SMALL, RARE], ids=["in clumps", "hardly a mistake"])
def test_intervals_hold_the_truth_in_nine_of_ten_audits(cells):
    truth = cells.true.mean(), cells.true.sum() / cells.count, cells.count
    audits = [audited(cells, seed=seed, sample=60, boxes=20, everywhere=True) for seed in range(60)]
    for name, value in zip(("precision", "recall", "cells"), truth, strict=True):
        estimates = [getattr(audit, name) for audit in audits]
        assert np.mean([one.low <= value <= one.high for one in estimates]) >= 0.9, name
    # And not by being wide: the count's interval says more than "between none and twice as many".
    assert np.mean([(one.cells.high - one.cells.low) / 2 for one in audits]) < 0.8 * cells.count


def test_the_count_is_unbiased():
    counts = np.array([audited(SMALL, seed=seed, everywhere=True).cells.value for seed in range(60)])
    assert abs(counts.mean() - SMALL.count) < 3 * counts.std(ddof=1) / np.sqrt(len(counts))


def test_who_looks_at_everything_knows_it_exactly():
    audit = audited(RARE, sample=10_000, boxes=10_000, everywhere=True)
    assert audit.cells == (RARE.count,) * 3
    assert audit.precision.low == audit.precision.high == RARE.true.mean()
    assert audit.recall.value == pytest.approx(RARE.true.sum() / RARE.count)
    assert audit.recall.low == pytest.approx(audit.recall.high)


def test_a_share_weighs_strata_by_their_size():
    answers = StratifiedAnswers(np.array([900, 100]), (np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 0, 1])))
    assert estimate_share(answers).value == pytest.approx(0.9 * 0.75 + 0.1 * 0.25)


def test_a_sum_weighs_boxes_by_what_they_stand_for():
    answers = StratifiedAnswers(np.array([50, 10]), (np.array([0.0, 1]), np.array([4.0, 2])))
    assert estimate_total(answers).value == pytest.approx(50 * 0.5 + 10 * 3)


def test_answers_that_are_all_the_same_leave_something_open():
    all_cells = StratifiedAnswers(np.array([500, 500]), (np.ones(20), np.ones(20)))
    none_missed = StratifiedAnswers(np.array([200]), (np.zeros(10),))
    audit = estimate_audit(all_cells, none_missed)
    assert audit.precision.value == audit.precision.high == 1
    assert 0.85 < audit.precision.low < 0.97
    assert audit.missed.value == audit.missed.low == 0
    assert 30 < audit.missed.high < 100  # ten empty boxes of two hundred: three cells in twenty boxes each
    assert audit.recall.high == 1
    assert audit.recall.low < audit.recall.value


def test_more_answers_narrow_the_interval():
    wide, narrow = (audited(SMALL, sample=n, boxes=n // 4, everywhere=True).cells for n in (40, 320))
    assert narrow.high - narrow.low < 0.7 * (wide.high - wide.low)


def test_boxes_tile_the_volume_and_count_their_detections():
    grid = box_grid(SMALL.cells.zyx, whole(SHAPE), VOXEL_UM, (60, 100, 100))
    size = (grid.corners[:, 3:] - grid.corners[:, :3]).prod(axis=1)
    assert size.sum() == np.prod(SHAPE)
    assert grid.detections.sum() == len(SMALL.cells)
    k = int(grid.detections.argmax())
    assert inside_boxes(SMALL.cells.zyx, grid.corners[k : k + 1]).sum() == grid.detections[k]
    assert grid.near[grid.detections > 0].all()
    assert not grid.near.all()


def test_a_sample_is_of_every_stratum_and_says_nothing_of_the_score():
    table = draw_audit(SMALL.cells, SHAPE, VOXEL_UM, AuditOptions(sample=50, boxes=12))
    box = table.columns[KIND] == BOX
    assert (~box).sum() == 50
    assert box.sum() == 12
    assert set(np.bincount(table.columns[STRATUM][~box])[1:]) == {10}
    assert "score" not in table.columns
    assert np.any(np.diff(table.columns[STRATUM][~box]) < 0)  # not in the order of the score
    same = draw_audit(SMALL.cells, SHAPE, VOXEL_UM, AuditOptions(sample=50, boxes=12))
    assert np.array_equal(same.zyx, table.zyx)


def test_only_boxes_of_the_region_are_sampled():
    half = np.array([[0, 0, 0, 100, 500, 500]])
    table = draw_audit(SMALL.cells, SHAPE, VOXEL_UM, AuditOptions(boxes=20), within=half)
    assert inside_boxes(table.zyx, half).all()
    corner = table.columns[CORNERS[3]][table.columns[KIND] == BOX].astype(int)
    assert corner.max() <= 100


def test_a_threshold_says_what_is_a_detection():
    table = draw_audit(SMALL.cells, SHAPE, VOXEL_UM, AuditOptions(threshold=0.8, boxes=0, sample=1000))
    assert len(table) == (SMALL.cells.columns["score"] >= 0.8).sum()


def test_answers_survive_a_spreadsheet(tmp_path: Path):
    table = draw_audit(SMALL.cells, SHAPE, VOXEL_UM, AuditOptions(sample=20, boxes=4))
    table.write(tmp_path / "audit.csv")
    head, *rows = (tmp_path / "audit.csv").read_text().splitlines()
    at = head.split(",").index(ANSWER)
    edited = [",".join([*(cells := row.split(","))[:at], "1", *cells[at + 1 :]]) for row in rows[:20]]
    edited[0] = edited[0].replace(",1,", ",-1,", 1)  # the first 1 of a row is its answer
    text = "\n".join([head, *edited, *rows[20:]]).replace(",", ";")
    (tmp_path / "audit.csv").write_text("\ufeff" + text)
    audit = audit_of(Points.read(tmp_path / "audit.csv"), SMALL.cells)
    assert (audit.answered, audit.unsure, audit.boxes) == (19, 1, 0)
    assert audit.precision.value == 1
    assert audit.cells is None
    assert "4 of 24 rows have no answer" in audit.notes[1]
    assert "1 answer is unsure" in audit.notes[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({ANSWER: np.array(["2", "1", "1"])}, "row 1: the answer is '2'; expected 1 \\(a cell\\)"),
        ({ANSWER: np.array(["1", "1", "-1"])}, "row 3: the answer is '-1'; expected the number of missed"),
        ({ANSWER: np.array(["1", "yes", "0"])}, "row 2: the answer is 'yes'"),
        ({KIND: np.array(["detection", "spot", "box"])}, "changed beyond its column answer"),
        ({ANSWER: np.array(["1", "", "3"])}, "1 detection is answered with 1 or 0"),
    ],
)
def test_what_is_no_answer_is_refused(change: dict, sentence: str):
    columns = {KIND: np.array(["detection", "detection", BOX]), ANSWER: np.array(["1", "0", "2"])}
    columns |= {STRATUM: np.array([1, 1, 1]), "stratum_size": np.array([9, 9, 5])}
    with pytest.raises(BadInput, match=sentence):
        audit_of(Points(np.zeros((3, 3)), columns | change))


@pytest.mark.parametrize("lost", [slice(0, 30), slice(1, None), np.arange(40) % 2 == 0], ids=str)
def test_an_audit_that_lost_rows_is_refused(lost):
    table = draw_audit(SMALL.cells, SHAPE, VOXEL_UM, AuditOptions(sample=30, boxes=10))
    table.columns[ANSWER] = np.full(len(table), "1")
    assert audit_of(table).precision.value == 1
    with pytest.raises(BadInput, match=f"of {len(table)} that were drawn: it was cut"):
        audit_of(table[lost])


def test_an_audit_of_other_cells_is_refused():
    table = draw_audit(SMALL.cells, SHAPE, VOXEL_UM, AuditOptions(boxes=0))
    with pytest.raises(BadInput, match="200 of 200 detections of the audit are not among these cells"):
        audit_of(table, Points(RARE.cells.zyx + 1))


def test_nothing_detected_is_nothing_to_audit():
    with pytest.raises(BadInput, match="none of the 0 cells"):
        draw_audit(Points(np.zeros((0, 3))), SHAPE, VOXEL_UM)


def test_a_stratum_without_answers_joins_its_neighbour():
    stratum, size = np.array([1, 1, 2, 2, 3, 3]), np.array([10, 10, 20, 20, 70, 70])
    answers = StratifiedAnswers.of(stratum, size, np.array([1.0, 1, np.nan, np.nan, 0, 1]))
    assert answers.size.tolist() == [30, 70]
    assert answers.n.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("sizes", "weights", "total"),
    [([100, 100, 100], [1, 1, 1], 30), ([3, 500, 2], [1, 1, 90], 40), ([5, 5], [0, 0], 99), ([1], [1], 3)],
)
def test_as_many_are_drawn_as_there_are_to_draw(sizes: list[int], weights: list[float], total: int):
    drawn = allocate(sizes, weights, total)
    assert sum(drawn) == min(total, sum(sizes))
    assert all(min(2, size) <= n <= size for n, size in zip(drawn, sizes, strict=True))


def test_more_is_drawn_where_more_is_open():
    low, high = allocate([1000, 1000], [1, 3], 100)
    assert (low, high) == (25, 75)


def test_ties_of_a_score_stay_together():
    strata = quantile_strata(np.array([0.0] * 6 + [1, 2, 3, 4]), 5)
    assert len(set(strata[:6])) == 1
    assert np.all(np.diff(strata) >= 0)
