"""The comparison of methods: folds, figures against independent counts, and the report that tells them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.matching import match
from canvas_fm.heads.compare.compare import compare
from canvas_fm.heads.compare.label_curve import draw_labels
from canvas_fm.heads.compare.methods import Fit
from canvas_fm.heads.compare.out_of_fold import Speed, overlap
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
from canvas_fm.heads.compare.summary import POOLED, against, curves, lines
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.refine.counts.count_interval import CountSpread
from canvas_fm.viewing.report.figures import gallery_rows
from canvas_fm.viewing.report.page.conclusion import conclusion_of
from canvas_fm.viewing.report.write import write_report


class Known:
    """Says what it was told, and remembers what it was given to learn from."""

    seeded = False

    def __init__(self, name: str, p: np.ndarray, threshold: float = 0.5, seeded: bool = False) -> None:
        self.name, self.p, self.threshold, self.seeded = name, p, threshold, seeded
        self.given: list = []

    def identity(self, fold):
        return {"name": self.name, "p": self.p.tolist(), "threshold": self.threshold}

    def fit(self, given) -> Fit:
        self.given.append(given)
        shift = 0.02 * given.seed if self.seeded else 0.0
        return Fit(lambda rows: np.clip(self.p[rows] + shift, 0, 1), self.threshold)


@pytest.fixture(scope="module")
def saying(pooled):
    """Probabilities that are right about most rows."""
    random = np.random.default_rng(0)
    return np.clip(0.5 + 0.3 * (2 * pooled.is_cell - 1) + random.normal(0, 0.2, len(pooled)), 0, 1)


@pytest.fixture(scope="module")
def found(pooled, saying):
    noise = np.random.default_rng(1).random(len(pooled))
    methods = [Known("good", saying, seeded=True), Known("noise", noise)]
    return compare(pooled, methods, seeds=3, counts=(20, 60), show=False)


def test_what_is_judged_was_never_given(pooled, saying):
    method = Known("good", saying)
    compare(pooled, [method], folds={"ab": ("a", "b"), "c": ("c",)}, seeds=1, counts=(20,), show=False)
    assert len(method.given) == 4
    for given in method.given:
        out = {"ab": {"a", "b"}, "c": {"c"}}[given.fold]
        assert set(pooled.group[given.pool]).isdisjoint(out)
        assert set(pooled.group[given.rows]).isdisjoint(out)
        assert (pooled.label[given.rows] != -1).all()
        assert sorted(np.concatenate([test for _, test in given.folds])) == list(range(len(given.rows)))


def test_few_labels_are_the_same_for_all_methods(pooled, saying):
    methods = [Known("one", saying), Known("two", saying)]
    compare(pooled, methods, seeds=2, counts=(20,), show=False)
    draws = [[given.rows for given in method.given if len(given.rows) == 20] for method in methods]
    assert len(draws[0]) == 6
    for one, two in zip(*draws, strict=True):
        np.testing.assert_array_equal(one, two)
    rows = pooled.labelled(["b", "c"])
    expected = rows[draw_labels(pooled.is_cell[rows].astype(np.int64), 20, 1)]
    np.testing.assert_array_equal(draws[0][1], expected)


def test_figures_by_hand(pooled, saying, found):
    part = pooled.parts[1]
    rows = np.flatnonzero((pooled.group == "b") & (pooled.label != -1))
    one = found.of("good", "b")[0]
    assert one.auc == pytest.approx(roc_auc_score(pooled.is_cell[rows], saying[rows]))
    kept = part.zyx[(saying[pooled.group == "b"] >= 0.5) & (part.label != -1)]
    tp = len(match(kept, part.truth_zyx, tolerance=6.0, scale_zyx=part.volume.voxel_um).pred_index)
    assert (one.tp, one.fp, one.fn) == (tp, len(kept) - tp, len(part.truth_zyx) - tp)
    assert one.f1 == pytest.approx(2 * tp / (len(kept) + len(part.truth_zyx)))
    recall = 1 - 3 / len(part.truth_zyx)
    assert one.ceiling == pytest.approx(2 * recall / (1 + recall))
    assert one.f1 <= one.f1_tuned <= one.ceiling + 1e-9
    own = pooled.own[rows]
    cells, others = np.sort(own[pooled.is_cell[rows]]), np.sort(own[~pooled.is_cell[rows]])
    low, high = cells[int(0.01 * (len(cells) - 1))], others[int(np.ceil(0.99 * (len(others) - 1)))]
    hard = rows[(own >= low) & (own <= high)]
    assert len(hard) < len(rows)
    assert one.auc_overlap == pytest.approx(roc_auc_score(pooled.is_cell[hard], saying[hard]))
    assert one.f1_interval[0] < one.f1 < one.f1_interval[1]


def test_counts_by_region_by_hand(shape_volumes):
    boxes = np.array([[0, 0, 0, 18, 96, 48], [0, 0, 48, 18, 96, 96]])
    whole = PooledCandidates(
        [Candidates.of(*given, tolerance_um=6.0, within=boxes) for given in shape_volumes]
    )
    p = np.random.default_rng(2).random(len(whole))
    spread = CountSpread(0.1, 2.0, 7)

    class Spread(Known):
        def fit(self, given):
            return super().fit(given)._replace(spread=spread)

    result = compare(whole, [Spread("some", p)], seeds=1, counts=(), show=False)
    for part in whole.parts:
        counts = result.of("some", part.name)[0].counts
        off, held = 0.0, 0
        mine = p[whole.group == part.name]
        for box in boxes:
            some = (part.zyx[:, 2] >= box[2] - 0.5) & (part.zyx[:, 2] < box[5] - 0.5) & (part.label != -1)
            said, true = mine[some].sum(), (part.label[some] == 1).sum()
            off += abs(said - true)
            reach = 2 * np.sqrt((mine[some] * (1 - mine[some])).sum() + (0.1 * said) ** 2)
            held += abs(said - true) <= reach
        assert counts == pytest.approx((off, (part.label == 1).sum(), 2, held))


def test_unrefined_candidates_are_counted_from_their_own_threshold(pooled, saying):
    result = compare(
        pooled, [Known("good", saying)], seeds=1, counts=(), own_thresholds={"a": 0.8}, show=False
    )
    for part in pooled.parts:
        keep = (part.own >= 0.8 if part.name == "a" else np.ones(len(part), bool)) & (part.label != -1)
        tp = len(
            match(part.zyx[keep], part.truth_zyx, tolerance=6.0, scale_zyx=part.volume.voxel_um).pred_index
        )
        truths = len(part.truth_zyx)
        assert result.unrefined[part.name] == (tp, keep.sum() - tp, truths - tp)


def test_no_overlap_is_no_figure():
    own = np.array([0.1, 0.2, 0.8, 0.9])
    assert not overlap(np.array([False, False, True, True]), own).any()
    assert overlap(np.array([False, True, False, True]), own).sum() == 2
    assert not overlap(np.ones(4, bool), own).any()


def test_pooled_lines_count_cells_together(found):
    by_volume = [found.of("good", volume)[0] for volume in found.volumes]
    tp, fp, fn = (sum(getattr(one, name) for one in by_volume) for name in ("tp", "fp", "fn"))
    line = next(one for one in lines(found, POOLED) if one.method == "good")
    assert line.figures["f1"].seeds[0] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert line.figures["auc"].seeds[0] == pytest.approx(np.mean([one.auc for one in by_volume]))
    truths = sum(len(part.truth_zyx) for part in found.pooled.parts)
    recall = 1 - 9 / truths
    assert line.ceiling == pytest.approx(2 * recall / (1 + recall))
    assert len(line.figures["f1"].seeds) == 3
    noise = next(one for one in lines(found, POOLED) if one.method == "noise")
    assert len(noise.figures["f1"].seeds) == 1  # no seed in it: fitted once
    low, high = line.figures["f1"].low, line.figures["f1"].high
    assert low < line.figures["f1"].mean < high <= 1


def test_curves_and_differences(found):
    every = curves(found)
    assert sorted(every["good"].values)[:2] == [20, 60]
    assert len(every["noise"].values[20]) == 3
    differences = against(found, "noise")
    expected = [
        found.of("good", volume)[seed].f1 - found.of("noise", volume)[0].f1
        for volume in found.volumes
        for seed in range(3)
    ]
    assert differences["good"].mean == pytest.approx(np.mean(expected))
    assert list(differences) == ["good"]


@pytest.fixture(scope="module")
def written(found, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A report with its figures, which take seconds to draw, and its folder."""
    folder = tmp_path_factory.mktemp("written")
    return write_report(found, folder, reference="noise", about={"encoder": "none, <b>"}), folder


def test_the_report_says_the_same_three_times(found, written):
    report, folder = written
    kept = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(report))
    assert kept["methods"]["good"][POOLED]["f1"]["mean"] == lines(found, POOLED)[0].figures["f1"].mean
    assert kept["split"] == {"by": "brain", "folds": {"a": ["a"], "b": ["b"], "c": ["c"]}}
    assert kept["gallery"]["method"] == "good"
    assert len(kept["results"]) == 3 * (3 + 1) + 2 * 3 * 2 * 3
    text = (folder / "report.md").read_text(encoding="utf-8")
    page = (folder / "report.html").read_text(encoding="utf-8")
    f1 = f"{kept['methods']['good'][POOLED]['f1']['mean']:.3f}"
    assert "| good | " in text
    assert f1 in text
    assert f1 in page
    labelled_rows = Points.read(folder / "candidates" / "b.csv")
    rows = found.pooled.group == "b"
    np.testing.assert_array_equal(labelled_rows.columns["label"], found.pooled.label[rows])
    np.testing.assert_allclose(labelled_rows.columns["p_good"], found.p_cell["good"][rows])
    for path in kept["figures"]:
        assert (folder / path).read_bytes().startswith(b"\x89PNG")
        assert f"]({path})" in text
    assert len(kept["figures"]) == page.count("data:image/png;base64,") == 4
    assert "none, &lt;b&gt;" in page
    assert "15 of 375 candidates" in page
    # Nothing is fetched: no address but those inside the page.
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_the_gallery_shows_what_it_names(found, pooled):
    rows = gallery_rows(found, "good")
    p = found.p_cell["good"]
    known = np.isfinite(p)
    assert rows["most certain cells"][0].p == np.nanmax(p)
    assert rows["most certain non-cells"][0].p == np.nanmin(p)
    wrong = rows["false negatives"]
    assert wrong
    assert all(one.is_cell and one.p < 0.5 for one in wrong)
    assert wrong[0].p == p[known & pooled.is_cell].min()
    assert all(not one.is_cell and one.p >= 0.5 for one in rows["false positives"])
    every = [one.row for some in rows.values() for one in some]
    assert len(every) == len(set(every))


def test_one_volume_is_marked_everywhere(shape_volumes, tmp_path):
    boxes = np.array([[0, 0, 0, 18, 96, 48], [0, 0, 48, 18, 96, 96]])
    divided = PooledCandidates([Candidates.of(*shape_volumes[0], tolerance_um=6.0, within=boxes)])
    p = np.random.default_rng(0).random(len(divided))
    result = compare(divided, [Known("noise", p)], seeds=1, counts=(), show=False)
    report = write_report(result, tmp_path / "report")
    assert report["split"]["by"] == "region"
    for name in ("report.json", "report.md", "report.html"):
        assert "one volume only" in (tmp_path / "report" / name).read_text(encoding="utf-8")
    assert report["figures"] == [f"figures/{n}.png" for n in ("precision_recall", "reliability", "gallery")]


def test_speed_is_measured_from_scratch(pooled, saying):
    seen = []

    class Slow(Known):
        def fit(self, given):
            fit = super().fit(given)
            return fit._replace(from_scratch=lambda rows: (seen.append(len(rows)), fit.predict(rows))[1])

    result = compare(pooled, [Slow("slow", saying)], seeds=1, counts=(), show=False)
    assert isinstance(result.speed["slow"], Speed)
    assert result.speed["slow"].cells_per_s > 0
    assert len(seen) == 3  # a warm-up and two rounds, once


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"folds": {"x": ("a", "z")}}, "fold 'x' names 'z'; there are a, b, c"),
        ({"folds": {"x": ("a", "b", "c")}}, "fold 'x' holds out 3 of 3 volumes"),
        ({"folds": {"x": ("a",), "y": ("a", "b")}}, "'a' stands in two folds"),
        ({"seeds": 0}, "seeds is 0"),
        ({"curve_of": ["bad"]}, "curve_of names 'bad'; the methods are good"),
    ],
)
def test_settings_that_do_not_fit(pooled, saying, options, sentence):
    with pytest.raises(CanvasError, match=sentence):
        compare(pooled, [Known("good", saying)], show=False, **options)


def test_no_method_two_of_one_name_and_one_that_is_not_there(pooled, saying, found, tmp_path):
    with pytest.raises(CanvasError, match="methods are none"):
        compare(pooled, [])
    with pytest.raises(CanvasError, match="by different names"):
        compare(pooled, [Known("good", saying), Known("good", saying)])
    with pytest.raises(CanvasError, match="there is no method 'best'; the report has good, noise"):
        write_report(found, tmp_path, reference="best")


def test_one_class_only_and_numbers_that_are_none(shape_volumes, pooled, saying):
    parts = []
    for volume, points, truth in shape_volumes[:2]:
        keep = points.columns["label"] == 1
        cells = type(points)(points.zyx[keep], {"label": points.columns["label"][keep]})
        parts.append(Candidates.of(volume, cells, truth, tolerance_um=6.0))
    alone = PooledCandidates(parts)
    with pytest.raises(CanvasError, match=r"without a: all \d+ labels are cells: one class only"):
        compare(alone, [Known("good", np.ones(len(alone)))])
    with pytest.raises(CanvasError, match=r"P\(cell\) of a is not a number"):
        compare(pooled, [Known("good", np.full(len(pooled), np.nan))], counts=(), show=False)


def test_the_page_begins_with_its_conclusion_a_picture_and_three_tables(found, written):
    report, folder = written
    f1 = lines(found, POOLED)[0].figures["f1"].mean
    assert report["conclusion"].startswith(f"good is best here: F1 {f1:.3f} on held-out volumes")
    assert report["conclusion"].endswith("; the others are below it")
    page = (folder / "report.html").read_text()
    begin, folded = page[page.index("<h1") :].split("<details>")
    assert begin.index('class="conclusion"') < begin.index("<img") < begin.index("<table")
    assert (begin.count("<table"), begin.count("<img")) == (3, 1)
    assert folded.count("<img") >= 2
    text = (folder / "report.md").read_text()
    assert text.split("\n\n")[1].startswith("**Good is best here")


def test_a_conclusion_names_what_cannot_be_told_apart_and_what_gains_nothing(pooled, saying):
    same = compare(pooled, [Known("one", saying), Known("two", saying)], seeds=1, show=False)
    assert conclusion_of(same).endswith("; not told apart from it: two")
    none = compare(pooled, [Known("nothing", np.zeros(len(pooled)))], seeds=1, show=False)
    assert conclusion_of(none).startswith("no method is better than the unrefined candidates, whose F1 is ")
