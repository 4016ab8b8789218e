"""A review by clicks: what is on the disk, what comes next, and what labels say in the end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from canvas_fm.data.points.points import Points
from canvas_fm.errors import BadInput, CanvasError
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.review.agreement import agreement, cohen_kappa, fleiss_kappa
from canvas_fm.heads.review.audit.clicked_count import clicked_count, random_clicks
from canvas_fm.heads.review.learn_from_clicks import learn_from_clicks, standardised
from canvas_fm.heads.review.order import diverse_order, first_order, random_order, uncertain_order
from canvas_fm.heads.review.session import ReviewSession

N = 60


@pytest.fixture
def candidates() -> Points:
    zyx = np.random.default_rng(0).integers(0, 50, (N, 3)).astype(float)
    return Points(zyx, {"score": np.linspace(0, 1, N), "region": np.arange(N) % 3})


@pytest.fixture
def begin(candidates: Points, tmp_path: Path):
    """`begin()`: a session on the same files; what was open before is let go, as after a kill."""
    opened: list[ReviewSession] = []

    def go(**options) -> ReviewSession:
        if opened:
            opened.pop().click_log.close()
        opened.append(
            ReviewSession(
                candidates, tmp_path / "labels.csv", ("anna", "ben"), **{"order": "random"} | options
            )
        )
        return opened[-1]

    return go


def click(session: ReviewSession, by: str, count: int, label=lambda row: row % 2) -> list[int]:
    rows = []
    for _ in range(count):
        (row,) = session.queue(by, 1)
        session.answer(by, f"{by}-{row}-{len(session.clicks.seen)}", [row], label(row))
        rows.append(row)
    return rows


def test_clicks_survive_a_kill(begin, tmp_path: Path):
    session = begin()
    rows = click(session, "anna", 12)
    session.add_missed("anna", "m1", (1, 2, 3))
    again = begin()  # nothing was closed or written but the click log
    assert list(again.clicks.labels["anna"]) == rows
    assert again.clicks.missed["m1"].zyx == (1, 2, 3)
    assert again.queue("anna", 3)[0] not in rows


def test_a_line_cut_by_a_power_failure_is_dropped_and_the_next_one_is_whole(begin, tmp_path: Path):
    session = begin()
    click(session, "anna", 3)
    path = tmp_path / "labels.csv.clicks.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id":"half","rows":[')
    again = begin()
    click(again, "anna", 1)
    assert len(begin().clicks.labels["anna"]) == 4
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_click_that_is_sent_twice_counts_once(begin, tmp_path: Path):
    session = begin()
    for label in (1, 0):
        session.answer("anna", "same", [5], label)
    assert session.clicks.labels["anna"] == {5: 1}
    assert len((tmp_path / "labels.csv.clicks.jsonl").read_text().splitlines()) == 2


def test_back_takes_the_last_answer_back_and_what_was_there_before_holds(begin):
    session = begin()
    session.answer("anna", "1", [5], 1)
    session.answer("anna", "2", [5, 6], 0)
    assert session.back("anna", "3") == [5, 6]
    assert session.clicks.labels["anna"] == {5: 1}
    assert begin().clicks.labels["anna"] == {5: 1}
    assert session.back("ben", "4") == []


def test_a_journal_is_held_by_one_and_belongs_to_its_candidates(begin, candidates: Points, tmp_path: Path):
    session = begin()
    with pytest.raises(CanvasError, match="another review writes"):
        ReviewSession(candidates, tmp_path / "labels.csv", ("anna",))
    session.click_log.close()
    with pytest.raises(CanvasError, match="holds clicks on 60 other candidates"):
        ReviewSession(Points(candidates.zyx + 1), tmp_path / "labels.csv", ("anna",))
    begin()


def test_labels_are_what_a_refiner_is_fitted_on(begin, tmp_path: Path):
    session = begin()
    session.answer("anna", "1", [0, 1], 1)
    session.answer("anna", "2", [2, 3], 0)
    session.answer("anna", "3", [4], -1)
    session.add_missed("anna", "4", (9, 9, 9))
    session.write()
    labels = Points.read(tmp_path / "labels.csv")
    assert labels.columns["label"][:6].tolist() == [1, 1, 0, 0, -1, -1]
    assert "label_anna" not in labels.columns
    assert Points.read(tmp_path / "labels_missed.csv").zyx.tolist() == [[9, 9, 9]]
    from canvas_fm.data.volume.volume import Volume

    volume = Volume.from_array(np.zeros((60, 60, 60), np.uint16), voxel_um=(1, 1, 1), name="v")
    assert Candidates.of(volume, labels, labels="label").counts()["cells"] == 2


def test_two_annotators_vote_and_a_tie_is_undecided(begin):
    session = begin()
    session.answer("anna", "1", [0, 1, 2], 1)
    session.answer("ben", "2", [0], 1)
    session.answer("ben", "3", [1], 0)
    session.answer("ben", "4", [2], -1)
    labels = session.labels()
    assert labels.columns["label"][:4].tolist() == [1, -1, 1, -1]
    assert labels.columns["label_ben"][:4].tolist() == [1, 0, -1, -1]
    pair = session.progress("ben")["agreement"]["pairs"][0]
    assert (pair["rows"], pair["agree"]) == (2, 0.5)


def test_before_anything_is_learned_good_and_bad_scores_take_turns():
    score = np.random.default_rng(0).permutation(640).astype(float)
    first = first_order(score, 640)[:14]
    assert sorted(first_order(score, 640)) == list(range(640))
    assert (score[first] >= 620).sum() >= 4
    assert (score[first] < 320).sum() >= 2
    assert np.array_equal(first_order(None, 9, 3), random_order(9, 3))


def test_one_in_five_is_of_the_random_order(begin):
    session = begin(order="uncertain", p_cell=np.linspace(0.01, 0.99, N))
    rows = click(session, "anna", 25)
    drawn = [row for k, row in enumerate(rows) if k % 5 == 4]
    rest = [row for k, row in enumerate(rows) if k % 5 != 4]
    middle = np.abs(np.array(rest) - N / 2)
    assert middle.max() < 14
    assert np.abs(np.array(drawn) - N / 2).max() > 14
    assert session.queue("anna", 7) == [*session.queue("anna", 7)]
    assert len(session.queue("anna", 500)) == N - 25


def test_disagreement_comes_first_then_what_another_said_against_expectation(begin):
    session = begin(order="disagreement", p_cell=np.linspace(0.01, 0.99, N))
    session.annotators = ("anna", "ben", "cleo")
    session.answer("anna", "1", [10, 50, 55], 1)
    session.answer("ben", "2", [10], 0)
    session.answer("ben", "3", [2], 1)
    assert session.queue("cleo", 4) == [10, 2, 50, 55]


def test_a_grid_is_of_what_is_surest(begin):
    session = begin()
    assert session.batch("anna", 1, 3) == [59, 58, 57]
    session.answer_each("anna", "g", {59: 1, 58: 0, 57: 1})
    assert session.batch("anna", 1, 1) == [56]
    assert session.clicks.labels["anna"] == {59: 1, 57: 1, 58: 0}


@pytest.mark.parametrize(("rows", "label"), [([0], 2), ([], 1), ([N], 1), ([-1], 0)])
def test_what_is_no_answer_is_refused_and_not_kept(begin, rows: list[int], label: int):
    session = begin()
    with pytest.raises(BadInput):
        session.answer("anna", "x", rows, label)
    with pytest.raises(BadInput, match="no annotator"):
        session.answer("eve", "x", [0], 1)
    assert not session.clicks.seen


def test_the_random_sample_is_the_answered_beginning_of_the_random_order(begin):
    session = begin()
    label = np.full(N, -2)
    label[session.permutation[[0, 1, 2, 4]]] = 1
    assert random_clicks(session.permutation, label).tolist() == session.permutation[:3].tolist()


def test_kappa_is_scikit_learns():
    random = np.random.default_rng(0)
    a = random.integers(0, 2, 200)
    b = np.where(random.random(200) < 0.8, a, 1 - a)
    assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    assert cohen_kappa(np.ones(3, int), np.ones(3, int)) is None
    result = agreement({"a": dict(enumerate(a.tolist())), "b": {0: -1, 1: int(b[1])}, "c": {1: 1}})
    assert result["pairs"][0]["rows"] == 1
    assert result["fleiss"]["rows"] == 1


def test_fleiss_kappa_of_the_textbook():
    # Fleiss (1971) by the table of Wikipedia: ten subjects, fourteen raters, five categories.
    table = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]]
    table += [[7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    assert fleiss_kappa(np.array(table)) == pytest.approx(0.210, abs=5e-4)


def test_a_diverse_order_visits_all_groups_before_any_twice():
    groups = np.array(["a"] * 10 + ["b"] * 3 + ["c"] * 3)
    first = uncertain_order(np.linspace(0.01, 0.99, 16), 0.5)
    order = diverse_order(groups, first)
    assert set(groups[order[:3]]) == set(groups[order[3:6]]) == {"a", "b", "c"}
    assert sorted(order) == list(range(16))
    of_a = [row for row in order.tolist() if groups[row] == "a"]
    assert of_a == [row for row in first.tolist() if groups[row] == "a"]


def learnable(seed: int, n: int = 1500):
    """Features, labels and a score that knows less than the features."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 6)).astype(np.float32)
    truth = (x[:, :3].sum(axis=1) + random.normal(0, 0.4, n) > 0.8).astype(np.int64)
    return standardised(x), truth, x[:, 0].astype(np.float64)


def test_the_count_by_clicks_holds_the_truth_and_a_model_narrows_it():
    held, widths = {True: 0, False: 0}, {True: [], False: []}
    for seed in range(40):
        x, truth, score = learnable(seed)
        label = np.full(len(truth), -2)
        permutation = np.random.default_rng(seed).permutation(len(truth))
        label[permutation[:150]] = truth[permutation[:150]]
        sample = random_clicks(permutation, label)
        learned = learn_from_clicks(x, label, sample, score, curve=False)
        for model in (True, False):
            count = clicked_count(label, sample, learned.p_cell if model else None)
            held[model] += count.low <= truth.sum() <= count.high
            widths[model].append(count.high - count.low)
    assert held[True] >= 34
    assert held[False] >= 34
    assert np.mean(widths[True]) < 0.75 * np.mean(widths[False])


def test_what_was_learned_is_scored_on_clicks_that_it_did_not_see():
    x, truth, score = learnable(1)
    label = np.full(len(truth), -2)
    label[:300] = truth[:300]
    learned = learn_from_clicks(x, label, np.arange(200), score)
    assert learned.f1_after > learned.f1_before + 0.1
    assert "on 200 held-out random ones its F1 is" in learned.sentence
    assert "labels F1 is" in learned.curve
    noise = standardised(np.random.default_rng(0).normal(size=(1500, 200)).astype(np.float32))
    nothing = learn_from_clicks(noise, label, np.arange(200), None, curve=False)
    assert nothing.f1_after < 0.7  # fitted to 300 rows of noise it would know all of them


def test_from_one_class_nothing_is_learned():
    x, truth, _ = learnable(2)
    label = np.where(truth == 1, 1, -2)
    assert learn_from_clicks(x, label, np.arange(0), None) is None


def test_the_count_needs_ten_answers_and_is_exact_once_all_are_given():
    label = np.array([1, 0, 1, 0] * 5)
    assert clicked_count(label, np.arange(9), None) is None
    assert clicked_count(label, np.arange(20), np.full(20, 0.3)) == (10, 10, 10)
    assert clicked_count(label, np.arange(20), None) == (10, 10, 10)


def test_the_stop_rule_says_how_wide_the_interval_is(begin):
    session = begin()
    click(session, "anna", 30)
    progress = session.progress("anna")
    assert progress["random"] == 30
    assert progress["stop"].startswith("the count's interval is now ± ")
    assert "you may stop" not in progress["stop"]
    click(session, "anna", 30)
    assert session.progress("anna")["stop"] == "the count's interval is now ± 0%; you may stop"


def test_orders_are_the_same_in_blocks_of_any_size(tmp_path, monkeypatch):
    """Of a million candidates only the first rows of an order are looked at, block by block."""
    label = np.array([1, 0, -2, 1, -1, 0, 1, -2, 1])
    permutation = np.array([3, 1, 4, 0, 5, 7, 2, 6, 8])
    queues = []
    for block in (2, 5, 1000):
        monkeypatch.setattr("canvas_fm.heads.review.session._BLOCK", block)
        monkeypatch.setattr("canvas_fm.heads.review.audit.clicked_count._BLOCK", block)
        assert random_clicks(permutation, label).tolist() == [3, 1, 4, 0, 5]
        assert random_clicks(permutation, np.abs(label)).tolist() == permutation.tolist()
        points = Points(np.arange(60.0).reshape(20, 3), {"score": np.linspace(0, 1, 20)})
        session = ReviewSession(points, tmp_path / f"{block}.csv", ["me"])
        session.answer("me", "a", session.queue("me", 4), 1)
        queues.append([session.queue("me", 30), session.batch("me", 1, 30), session.batch("me", 0, 30)])
        session.close()
    assert queues[0] == queues[1] == queues[2]
    assert [len(rows) for rows in queues[0]] == [16, 16, 16]
    assert queues[0][1] == queues[0][2][::-1]
