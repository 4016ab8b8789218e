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


def test_channels_need_names_of_their_own(refusal, small, cells, tmp_path):  # noqa: F811
    assert "name each: --channels" in refusal("regions", cells, cells, small.labels_path, "--out", "r.csv")


def test_an_absent_atlas_is_a_sentence(refusal, cells):
    assert "brainglobe install -a" in refusal(
        "regions", cells, "allen_mouse_25um", "--out", "r.csv", "--brainglobe", "nowhere"
    )
