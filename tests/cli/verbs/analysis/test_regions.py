"""`regions` on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from tests.analysis.regions.conftest import small  # noqa: F401
from tests.analysis.regions.test_cells_per_region import points_inside


@pytest.fixture
def cells(small, tmp_path):  # noqa: F811
    path = tmp_path / "neun.csv"
    Points(points_inside(small.labels, 200), {"p_cell": np.full(200, 0.5)}).write(path)
    return path


def test_two_channels_to_a_table(result, small, cells, tmp_path):  # noqa: F811
    import pandas

    Points(points_inside(small.labels, 70, 1)).write(tmp_path / "cfos.csv.gz")
    out, placed = tmp_path / "counts.csv", tmp_path / "placed.csv"
    size = ["--voxel-um", 10, 10, 10, "--atlas-voxel-um", 100, 100, 100]
    printed = result(
        "regions", cells, tmp_path / "cfos.csv.gz", small.labels_path, "--table", small.table,
        "--atlas-orientation", "asr", "--out", out, "--cells-out", placed, *size,
    )  # fmt: skip
    table = pandas.read_csv(out)
    assert list(table.columns[:3]) == ["id", "name", "acronym"]
    assert {"count", "volume_mm3", "density", "own_count", "count_low"} <= set(table.columns)
    root = table[(table.id == 997) & (table.hemisphere == "both")].set_index("channel")
    assert root["count"].to_dict() == {"neun": 100, "cfos": 70}
    assert root.count_low["neun"] < 100 < root.count_high["neun"]
    assert np.isnan(root.count_low["cfos"])
    assert printed["channels"]["cfos"]["points"] == 70
    assert json.loads((tmp_path / "counts.csv.json").read_text())["channels"] == printed["channels"]
    plain = pandas.read_csv(out, dtype=str)
    for key in ("own_volume_mm3", "volume_mm3", "density"):
        assert plain[key].dropna().map(lambda text: len(text.replace(".", "").strip("0"))).max() <= 7, key
    rows = pandas.read_csv(placed)
    assert rows.groupby("channel").size().to_dict() == {"cfos": 70, "neun": 200}
    assert set(rows.hemisphere) == {"left", "right"}
    assert np.array_equal(np.floor(rows.atlas_z_um / 100), np.floor((rows.z + 0.5) / 10))


def test_detections_that_state_their_count_are_counted_by_it(result, small, tmp_path):  # noqa: F811
    """The recall of a shipped detector, which P(cell) goes by, is not that of detections."""
    import pandas

    from canvas_fm.heads.refine.counts.candidate_recall import shipped_recalls
    from canvas_fm.heads.refine.counts.count_interval import MeasuredCount, expected_count

    known = shipped_recalls()[0]
    meta = {
        "detector_sha256": known.made_by, "threshold": str(known.threshold), "expected_cells": "100.0",
        "detections_per_cell": "2", "detections_per_cell_spread": "0.1000 8",
        "detections_per_cell_parts": "0.5 0.01",
    }  # fmt: skip
    cells, out = tmp_path / "cells.csv", tmp_path / "counts.csv"
    size = ["--voxel-um", 10, 10, 10, "--atlas-voxel-um", 100, 100, 100]
    zyx = points_inside(small.labels, 200)
    for lines, count, of in ((meta, 100, "all cells"), ({"threshold": "0.12"}, 200, "rows")):
        Points(zyx, {}, lines).write(cells)
        result(
            "regions", cells, small.labels_path, "--table", small.table, "--out", out, "--overwrite", *size
        )
        rows = pandas.read_csv(out)
        row = rows[(rows.id == 997) & (rows.hemisphere == "both")].iloc[0]
        assert (row["count"], row.count_of) == (count, of)
        if count == 100:
            whole = expected_count(np.ones(200), None, MeasuredCount(2, 0.1, 8, 0.5, 0.01, 100))
            assert (row.count_low, row.count_high) == (pytest.approx(whole.low), pytest.approx(whole.high))


def test_channels_need_names_of_their_own(refusal, small, cells, tmp_path):  # noqa: F811
    assert "name each: --channels" in refusal("regions", cells, cells, small.labels_path, "--out", "r.csv")


def test_an_absent_atlas_is_a_sentence(refusal, cells):
    assert "brainglobe install -a" in refusal(
        "regions", cells, "allen_mouse_25um", "--out", "r.csv", "--brainglobe", "nowhere"
    )
