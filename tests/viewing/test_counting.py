"""The demo's counts of the shipped samples: of which models they are, and whether those saw the tissue."""

from __future__ import annotations

import json

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.files.shipped import DEFAULT_ENCODER, find
from canvas_fm.viewing.demo.counting import HITS, TOLERANCE_UM, SampleCount, count_sample, is_true_cell
from canvas_fm.viewing.demo.counting_section import counting_sections


@pytest.fixture(scope="module")
def microglia(tmp_path_factory) -> SampleCount:
    return count_sample("microglia", tmp_path_factory.mktemp("demo") / "microglia", device="cpu")


def test_the_detector_and_its_refiner_find_the_sample_cells(microglia):
    """Far from chance and far from the fold figures' spread: a shift of axes or of a voxel size shows."""
    assert microglia.true_cells == len(cf.sample("microglia").cells)
    assert microglia.detected.value > 0.8
    assert microglia.refined.value > 0.8
    assert microglia.refined.low <= microglia.refined.value <= microglia.refined.high
    assert microglia.interval_90[0] <= microglia.expected_cells <= microglia.interval_90[1]
    assert 0 < microglia.hits_are_cells <= HITS


def test_what_it_leaves_is_read_by_the_public_functions(microglia):
    folder = microglia.score_png.parent
    data = cf.sample("microglia")
    score = cf.evaluate(
        cf.Points.read(folder / "cells.csv"), data.cells, voxel_um=data.volume.voxel_um,
        tolerance_um=TOLERANCE_UM["microglia"],
    )  # fmt: skip
    assert score.counts.f1 == pytest.approx(microglia.detected.value)
    refined = cf.Points.read(folder / "refined.csv")
    assert len(cf.Index.open(folder / "cells.index")) == len(refined)
    assert microglia.count_of == refined.meta["count_of"] == "all cells"
    of_all = refined.columns["p_cell"].sum() / float(refined.meta["p_cell_per_cell"])
    assert of_all == pytest.approx(microglia.expected_cells, rel=1e-3)
    assert float(refined.meta["expected_cells"]) == pytest.approx(microglia.expected_cells, abs=0.1)


def test_candidates_below_the_threshold_have_a_class_too(microglia):
    data, tolerance = cf.sample("microglia"), TOLERANCE_UM["microglia"]
    refined = cf.Points.read(microglia.score_png.parent / "refined.csv")
    strict = cf.Points(refined.zyx, refined.columns, refined.meta | {"p_cell_threshold": "0.95"})
    assert (refined.columns["p_cell"] < 0.95).any()
    is_cell = is_true_cell(data, strict, tolerance)
    assert len(is_cell) == len(refined)
    apart_um = (refined.zyx[:, None] - data.cells.zyx[None]) * data.volume.voxel_um
    near = np.linalg.norm(apart_um, axis=2).min(axis=1)
    assert (near[is_cell] <= tolerance).all()
    assert 0.8 * len(data.cells) < is_cell.sum() <= len(data.cells)


def test_models_that_saw_the_cube_are_named(microglia):
    assert microglia.trained_on_it == ()
    assert "No shipped model was trained on this cube" in counting_sections([microglia])
    config = json.loads((find("model", "detector-cfos") / "config.json").read_text(encoding="utf-8"))
    assert "695" in json.dumps(config)


def test_search_by_example_is_by_the_encoder_that_ships_as_default(microglia):
    assert f"<code>{DEFAULT_ENCODER}</code>" in counting_sections([microglia])
    index = cf.Index.open(microglia.score_png.parent / "cells.index")
    assert index.encoder_sha256 == cf.load(DEFAULT_ENCODER).sha256
    assert f"canvas-fm search cells.index --ids {microglia.query} -k {HITS}" in counting_sections([microglia])


def test_values_are_escaped(microglia):
    named = SampleCount(**{**vars(microglia), "detector": "<script>alert(1)</script>"})
    html = counting_sections([named])
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
