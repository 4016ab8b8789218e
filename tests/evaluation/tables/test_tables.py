"""The tables from files on disk: pooling, marks, gaps, and manifests that are refused."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.confusion_counts import Counts
from canvas_fm.evaluation.leaderboard.submission import Benchmark, Card
from canvas_fm.evaluation.page.html import contrast, heatmap_cell_style
from canvas_fm.evaluation.tables.manifest import Manifest
from canvas_fm.evaluation.tables.tables import make_tables
from canvas_fm.evaluation.tables.write import write_tables
from canvas_fm.files.strict_yaml import read_settings

MANIFEST = """
title: Cross-marker <test>
tolerance_voxels: 3
predictions: cells/{model}/{dataset}/{region}.csv
models:
  - {name: a, marker: NeuN}
  - {name: b|x, marker: [TH, PV]}
datasets:
  - name: neurons
    marker: neun
    regions:
      - {name: r1, split: train, truth: truth/neurons_r1.csv}
      - {name: r2, split: test, truth: truth/neurons_r2.csv}
      - {name: r3, split: test, truth: truth/neurons_r3.csv}
  - name: th
    marker: TH
    regions:
      - {name: r1, truth: truth/th_r1.csv, within: [[0, 0, 0, 1, 1, 350]]}
"""
# Counts of each model and region: what the files below are made of.
WANTED = {
    ("a", "neurons", "r1"): Counts(8, 1, 2),
    ("a", "neurons", "r2"): Counts(5, 0, 5),
    ("a", "neurons", "r3"): Counts(1, 0, 1),
    ("a", "th", "r1"): Counts(1, 3, 3),
    ("b|x", "neurons", "r1"): Counts(2, 6, 8),
    ("b|x", "neurons", "r2"): Counts(6, 5, 4),
    ("b|x", "neurons", "r3"): Counts(0, 0, 2),
    ("b|x", "th", "r1"): Counts(4, 0, 0),
}


@pytest.fixture
def manifest(tmp_path):
    for (model, data, region), (tp, fp, fn) in WANTED.items():
        truth, pred = np.zeros((tp + fn, 3)), np.zeros((tp + fp, 3))
        truth[:, 2] = 100 * np.arange(tp + fn)
        pred[:tp, 2], pred[tp:, 2] = truth[:tp, 2] + 1, 50 + 100 * np.arange(fp)
        file = tmp_path / "cells" / model / data / f"{region}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        Points(pred).write(file)
        (tmp_path / "truth").mkdir(exist_ok=True)
        Points(truth).write(tmp_path / "truth" / f"{data}_{region}.csv")
    path = tmp_path / "manifest.yaml"
    path.write_text(MANIFEST)
    return path


def row(tables, dataset, label):
    return next(row for row in tables.rows if (row.dataset, row.label) == (dataset, label))


def test_every_region_is_scored_and_sets_and_totals_pool_cells(manifest):
    tables = make_tables(manifest)
    assert [(r.dataset, r.label, r.level) for r in tables.rows] == [
        ("neurons", "Total", "total"),
        ("neurons", "Train set", "set"),
        ("neurons", "r1", "region"),
        ("neurons", "Test set", "set"),
        ("neurons", "r2", "region"),
        ("neurons", "r3", "region"),
        ("th", "Total", "total"),
        ("th", "r1", "region"),
    ]
    for (model, data, region), counts in WANTED.items():
        assert row(tables, data, region).cells[model].counts == counts
    assert row(tables, "neurons", "Test set").cells["a"].counts == Counts(6, 0, 6)
    assert row(tables, "neurons", "Total").cells["b|x"].counts == Counts(8, 11, 14)


def test_matched_data_sets_and_the_best_of_a_row_are_marked(manifest):
    tables = make_tables(manifest)
    assert {m: c.matched for m, c in row(tables, "neurons", "r2").cells.items()} == {"a": True, "b|x": False}
    assert {m: c.matched for m, c in row(tables, "th", "r1").cells.items()} == {"a": False, "b|x": True}
    assert row(tables, "neurons", "Total").best == {"a"}
    assert row(tables, "th", "Total").best == {"b|x"}


def test_the_generalisation_gap_is_own_minus_elsewhere(manifest):
    tables = make_tables(manifest)
    own, elsewhere = tables.gap("b|x")
    assert own == pytest.approx(1.0)
    assert elsewhere == pytest.approx(Counts(8, 11, 14).f1)


def test_markdown_and_csv_say_the_same(manifest, tmp_path):
    paths = {path.suffix: path for path in write_tables(make_tables(manifest), tmp_path / "out")}
    text = paths[".md"].read_text()
    assert "| Data set | Region | a Acc | a F1 | b\\|x Acc | b\\|x F1 |" in text
    assert "| neurons | r1 | **<u>0.73</u>** | **<u>0.84</u>** | 0.12 | 0.22 |" in text
    assert "| th | Total | 0.14 | 0.25 | **<u>1.00</u>** | **<u>1.00</u>** |" in text
    with paths[".csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 16
    line = next(r for r in lines if (r["dataset"], r["row"], r["model"]) == ("neurons", "r1", "a"))
    assert [line[k] for k in ("tp", "fp", "fn", "matched", "best", "tolerance")] == [
        "8",
        "1",
        "2",
        "1",
        "1",
        "3 voxels",
    ]
    assert float(line["f1"]) == Counts(8, 1, 2).f1
    assert float(line["f1_low"]) < float(line["f1"]) < float(line["f1_high"])


def test_a_model_that_was_not_run_leaves_its_cells_and_totals_empty(manifest):
    text = manifest.read_text().replace(
        "truth: truth/neurons_r2.csv", "truth: truth/neurons_r2.csv, predictions: {a: null}"
    )
    manifest.write_text(text)
    tables = make_tables(manifest)
    assert row(tables, "neurons", "r2").cells["a"] is None
    assert row(tables, "neurons", "Total").cells["a"] is None
    assert row(tables, "neurons", "r1").cells["a"] is not None
    assert row(tables, "neurons", "r2").best == {"b|x"}
    assert tables.gap("a") is None


class Reader(HTMLParser):
    """Collects the cells of each table row, and every tag that could load something."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.loads, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loads += [value for key, value in given.items() if key in ("src", "href") and value != "data:,"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_the_page_is_whole_loads_nothing_and_escapes_names(manifest, tmp_path):
    text = next(
        p for p in write_tables(make_tables(manifest), tmp_path / "out") if p.suffix == ".html"
    ).read_text()
    page = Reader(text)
    assert page.loads == []
    assert page.open == []
    assert "<test>" not in text
    found = next(cells for cells in page.rows if cells[:2] == ["neurons", "r1"])
    assert [cell.split(" ")[0] for cell in found[2:]] == ["0.73", "0.84", "0.12", "0.22"]
    assert "matched, best" in found[2]
    assert re.search(r" 0\.\d\d–[01]\.\d\d$", found[3])


def test_the_page_begins_with_its_conclusion_and_a_picture(manifest, tmp_path):
    """Mean F1 of b|x is (16/41 + 1) / 2, of a (28/37 + 1/4) / 2; b|x loses 1 − 16/41 elsewhere."""
    paths = {path.suffix: path for path in write_tables(make_tables(manifest), tmp_path / "out")}
    text = paths[".html"].read_text()
    (conclusion,) = re.findall('<p class="conclusion">(.*?)</p>', text)
    assert conclusion.startswith(
        "b|x has the highest mean F1 over the 2 data sets, 0.70; a follows with 0.50"
    )
    assert re.search(
        r"their intervals are apart on [12] of 2\. Away from its own marker b\|x loses 0\.61\.$", conclusion
    )
    assert f"**{conclusion}**" in paths[".md"].read_text()
    assert text.index(conclusion) < text.index('<figure class="intervals">') < text.index("<table")
    picture = text.partition('<figure class="intervals">')[2].partition("</figure>")[0]
    rows = re.findall(r'class="row( strong)?"><span>(.*?)</span>.*?<b style="left:([\d.]+)%', picture, re.S)
    assert [(bool(strong), label) for strong, label, _ in rows] == [
        (True, "a on neurons"), (False, "b|x on neurons"), (False, "a on th"), (True, "b|x on th"),
    ]  # fmt: skip
    assert [float(place) for *_, place in rows] == pytest.approx([75.7, 39.0, 25.0, 100.0], abs=0.1)


def test_ink_on_every_colour_of_the_heat_map_can_be_read():
    for value in np.linspace(0, 1, 101):
        back, ink = re.findall("#(..)(..)(..)", heatmap_cell_style(float(value)))
        assert contrast(tuple(int(c, 16) for c in back), tuple(int(c, 16) for c in ink)) >= 4.5


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("models:", "modells:", r"unknown key 'modells'; did you mean 'models'\?"),
        ("split: train", "splitt: train", r"'datasets\[1\]\.regions\[1\]\.splitt'; did you mean '.*\.split'"),
        ("split: train", "split: training", r"regions\[1\]\.split is 'training'; expected 'train'"),
        ("title: Cross-marker <test>", "tolerance_um: -1", r"tolerance_um is -1; expected"),
        ("name: b|x", "name: a", "two models are called 'a'"),
        ("name: r2", "name: r1", "two regions of neurons are called 'r1'"),
        ("    marker: TH\n", "", r"the key 'datasets\[2\]\.marker' is missing"),
        ("tolerance_voxels: 3", "tolerance_voxels: three", "tolerance_voxels is 'three'; expected"),
        ("tolerance_voxels: 3", "title: a\ntolerance_voxels: 3", "the key 'title' is given twice"),
        ("predictions: cells/{model}/{dataset}/{region}.csv", "", "no predictions of a; give them there"),
        ("truth: truth/th_r1.csv", "truth: t.csv, predictions: {c: x.csv}", "'c'; the models here are a, b"),
        ("truth: truth/th_r1.csv", "truth: none.csv", "2 files that it names are not there: .*none.csv"),
        ("[[0, 0, 0, 1, 1, 350]]", "[[0, 0, 0, 1, 1, 0]]", "th, r1: box 1 is"),
        ("tolerance_voxels: 3", "tolerance_um: 3", "a tolerance in µm needs the voxel size"),
    ],
)  # fmt: skip
def test_manifests_that_are_refused(manifest, old, new, sentence):
    assert old in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(old, new))
    with pytest.raises(CanvasError, match=sentence):
        make_tables(manifest)


def test_a_manifest_that_is_none(tmp_path):
    (tmp_path / "a.yaml").write_text("- a\n")
    with pytest.raises(CanvasError, match="expected a mapping with the keys title, models, datasets"):
        make_tables(tmp_path / "a.yaml")
    with pytest.raises(CanvasError, match="there is no such file"):
        make_tables(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("a: [")
    with pytest.raises(CanvasError, match="not readable as YAML"):
        make_tables(tmp_path / "c.yaml")


def test_a_markers_own_tolerance_is_used_where_none_is_given(manifest):
    manifest.write_text(manifest.read_text().replace("tolerance_voxels: 3\n", ""))
    assert make_tables(manifest).tolerances == {
        "neurons": "6 voxels, as for NeuN",
        "th": "8 voxels, as for TH",
    }


def test_the_examples_of_the_docs_are_what_is_read(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "label-and-improve" / "score.md").read_text(
        encoding="utf-8"
    )
    examples = re.findall(r"^```yaml\n# (\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    kinds = {"manifest": Manifest, "benchmark": Benchmark, "card": Card}
    assert [kind for kind, _ in examples] == list(kinds)
    for kind, text in examples:
        (tmp_path / kind).write_text(text)
        read_settings(tmp_path / kind, kinds[kind])
