"""The demo's page: one file that holds everything, readable without colours and without images."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from canvas_fm.viewing.demo.counting import F1, SampleCount
from canvas_fm.viewing.demo.page import (
    Agreement,
    DemoPage,
    MarkerView,
    Reconstructed,
    plane_png,
    power_of_ten,
    write_page,
)
from canvas_fm.viewing.demo.svg import Interval, interval_chart, line_chart, scatter

VOID = {"meta", "link", "img", "input", "br", "hr", "path", "circle"}


class Outline(HTMLParser):
    """Every element with its attributes; raises where the tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path) -> DemoPage:
    random = np.random.default_rng(0)
    Image.new("L", (8, 8)).save(tmp_path / "figure.png")
    plane = random.integers(0, 255, (20, 30), dtype=np.uint8)
    count = SampleCount(
        name="cfos", about={"cube": "delivr_cFos/695", "voxel_um": [6.0, 1.62, 1.62], "licence": "MIT"},
        tolerance_um=8.0, detector="detector-cfos", refiner="refiner-cfos", encoder="base-5",
        trained_on_it=("detector-cfos",),
        true_cells=223, detected=F1(0.5, 0.4, 0.6, 100, 20, 123), refined=F1(0.6, 0.5, 0.7, 110, 10, 113),
        count_of="all cells", expected_cells=120.0, interval_90=(90.0, 150.0),
        score_png=tmp_path / "figure.png", hits_png=tmp_path / "figure.png", query=3, hits_are_cells=7,
    )  # fmt: skip
    return DemoPage(
        counts=[count],
        steps=300,
        parameters=431_000,
        views=[MarkerView(m, plane, random.random((3, 2)) * 20, 40, 1.8) for m in ("NeuN", "PV")],
        losses={"training": [(10, 0.05), (20, 0.02)], "held-out brain": [(20, 0.03)]},
        cell_losses={"training": [(10, 4.1), (20, 3.9)]},
        reconstructions=[Reconstructed("NeuN", tmp_path / "figure.png", {"model": 21.34, "crop mean": 18.0})],
        map={m: random.normal(size=(5, 2)) for m in ("NeuN", "PV")},
        map_share=(0.4, 0.2),
        separability=[
            Interval("pretrained <encoder>", 0.8, 0.7, 0.9, strong=True),
            Interval("x", 0.5, 0.4, 0.6),
        ],
        fitted_cells=160,
        scored_cells=158,
        agreement=[Agreement("HTTP — Python", 3.2e-7)],
        agreement_limit=1e-5,
        compared_cells=77,
        seconds={"pretraining": 65.4, "figures": 9.0},
        about={"torch": "2 & more"},
        next_steps=["canvas-fm info brain.zarr"],
    )


@pytest.fixture
def html(page, tmp_path) -> str:
    write_page(page, tmp_path / "index.html")
    return (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def outline(html) -> Outline:
    parsed = Outline()
    parsed.feed(html)
    assert parsed.open == []
    return parsed


def test_it_needs_nothing_from_anywhere(html, outline):
    for _, attributes in outline.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert re.findall(r"https?://|url\(|@import|<script", html) == []


def test_it_can_be_read_without_seeing_it(outline):
    by_tag: dict[str, list[dict]] = {}
    for tag, attributes in outline.elements:
        by_tag.setdefault(tag, []).append(attributes)
    assert by_tag["html"][0]["lang"] == "en"
    assert len(by_tag["h1"]) == 1
    assert all(image["alt"] for image in by_tag["img"])
    for drawing in by_tag["svg"]:
        assert drawing.get("aria-hidden") == "true" or drawing["aria-label"]
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(section["aria-labelledby"] in ids for section in by_tag["section"])


def test_every_number_is_there_with_its_unit(outline):
    for shown in ("0.43 M parameters", "300 steps", "3.2 × 10⁻⁷", "1 min 14 s", "65.4 s", "model 21.3 dB"):
        assert shown in outline.text
    for shown in ("3 of 40 cells", "160 cells of the first brain", "158 of the second", "77 cells"):
        assert shown in outline.text
    assert "component 1 (40% of the variance)" in outline.text


def test_it_begins_with_its_conclusion_and_a_picture(html):
    (conclusion,) = re.findall('<p class="conclusion">(.*?)</p>', html)
    assert conclusion.endswith("cfos F1 0.60, 120 (90 to 150) cells counted where there are 223.")
    assert html.index(conclusion) < html.index("<img") < html.index("<table")


def test_names_cannot_break_the_page(outline):
    assert "pretrained <encoder>" in outline.text
    assert "2 & more" in outline.text


def test_images_are_those_given(page, html):
    image = Image.open(io.BytesIO(base64.b64decode(plane_png(page.views[0].plane).split(",")[1])))
    assert np.array_equal(np.asarray(image), page.views[0].plane)
    assert base64.b64encode(page.reconstructions[0].figure.read_bytes()).decode() in html


def test_cells_are_drawn_where_they_are(page, tmp_path):
    view = replace(page.views[0], cells_yx=np.array([[3.0, 17.0]]))
    write_page(replace(page, views=[view]), tmp_path / "one.html")
    html = (tmp_path / "one.html").read_text(encoding="utf-8")
    # Voxel 17 spans 17 to 18 pixels from the left: its centre is at 17.5.
    assert re.findall(r'class="cell" cx="([\d.]+)" cy="([\d.]+)"', html) == [("17.5", "3.5")]


def test_a_page_is_written_whole_or_not_at_all(page, tmp_path):
    gone = replace(page, reconstructions=[Reconstructed("NeuN", Path("nowhere.png"), {})])
    with pytest.raises(FileNotFoundError):
        write_page(gone, tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


def marks(svg: str, colour: str) -> np.ndarray:
    """Where marks of a colour are drawn: x, y in points."""
    found = re.findall(
        rf'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="[^"]*{re.escape(colour)}', svg
    )
    return np.array(found, dtype=float)


def strokes(svg: str, colour: str) -> list[tuple[float, float]]:
    """From where to where along x the straight lines of a colour go."""
    path = rf'd="M ([\d.]+) [\d.]+ \s*L ([\d.]+) [\d.]+\s*" style="[^"]*stroke: {re.escape(colour)}'
    return [(float(start), float(end)) for start, end in re.findall(path, svg)]


def test_a_chart_is_linear_in_its_data():
    line = [(0.0, 0.0), (5.0, 1.0), (10.0, 4.0)]
    svg = line_chart({"a": line}, title="t", x_label="x", y_label="y", dots=["a"])
    (x0, y0), (x1, y1), (x2, y2) = marks(svg, "var(--accent)")[:3]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.01)
    assert y0 - y1 == pytest.approx((y0 - y2) / 4, abs=0.01)


def test_intervals_are_drawn_between_0_and_1():
    rows = [Interval("a", 0.5, 0.25, 0.75), Interval("b", 1.0, 1.0, 1.0, strong=True)]
    svg = interval_chart(rows, title="t", x_label="x", chance=0.25)
    (half, _), (whole, _) = marks(svg, "var(--muted)")[-1], marks(svg, "var(--accent)")[0]
    lines = strokes(svg, "var(--muted)")
    low, high = next(ends for ends in lines if ends[0] != ends[1] and half == pytest.approx(sum(ends) / 2))
    assert whole - half == pytest.approx(high - low, abs=0.01)
    assert (low, low) in lines  # chance, at .25 too


def test_groups_differ_by_shape_too():
    svg = scatter({name: np.zeros((1, 2)) for name in "abcdef"}, title="t", x_label="x", y_label="y")
    shapes = dict(re.findall(r'<path id="(\w+)" d="([^"]*)"', svg))
    used = re.findall(r'<use xlink:href="#(\w+)" x="[\d.]+" y="[\d.]+" style="([^"]*--g\d[^"]*)"', svg)
    drawn = {(shapes[name], style.startswith("fill: var")) for name, style in used}
    assert len(drawn) == 6


def test_names_in_charts_are_escaped_and_colours_are_the_pages():
    svg = line_chart({"a <b>": [(0, 1), (1, 2)]}, title='"t"', x_label="x & y", y_label="y")
    assert "a &lt;b&gt;" in svg
    assert "x &amp; y" in svg
    assert "<b>" not in svg
    assert 'aria-label="&#34;t&#34;"' in svg
    assert re.findall("#[0-9a-f]{6}", svg) == []


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (1e-5, "10⁻⁵"), (3.24e-7, "3.2 × 10⁻⁷"), (0.012, "1.2 × 10⁻²")]
)
def test_powers_of_ten(value, shown):
    assert power_of_ten(value) == shown
