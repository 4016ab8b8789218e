"""The page of a brain: complete, self-contained, escaped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.analysis.regions.atlas import open_atlas
from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.viewing.brain_report.report import brain_report
from tests.analysis.regions.conftest import TABLE, small  # noqa: F401
from tests.analysis.regions.test_cells_per_region import points_inside


@pytest.fixture
def counted(small, tmp_path):  # noqa: F811
    """A brain's regions and cells, as the verb writes them; one region's name holds a tag."""
    small.table.write_text(TABLE.replace("Cerebral nuclei", "<script>nuclei</script>"), encoding="utf-8")
    Points(points_inside(small.labels, 300), {"p_cell": np.full(300, 0.5)}).write(tmp_path / "cells.csv")
    words = ["regions", tmp_path / "cells.csv", small.labels_path, "--table", small.table, "--out"]
    words += [
        tmp_path / "regions.csv",
        "--cells-out",
        tmp_path / "placed.csv",
        "--atlas-voxel-um",
        100,
        100,
        100,
    ]
    assert main([str(one) for one in [*words, "--voxel-um", 10, 10, 10]]) == 0
    return tmp_path


def test_the_page_holds_counts_planes_scores_groups_and_files(small, counted):  # noqa: F811
    (counted / "score.json").write_text(json.dumps({"f1": 0.9, "tp": 7}), encoding="utf-8")
    (counted / "groups.csv").write_text(
        "name,first,second,log2_fold,log2_fold_low,log2_fold_high,p_value,q_value\n"
        "cortex,a,b,1,0.5,1.5,0.001,0.002\nthalamus,a,b,0,-1,1,0.9,0.9\n",
        encoding="utf-8",
    )
    atlas = open_atlas(small.labels_path, table=small.table, atlas_voxel_um=(100, 100, 100))
    page = brain_report(
        [counted / "regions.csv"], counted / "r.html",
        title="M <1>", atlas=atlas, cells=counted / "placed.csv",
        scores=[counted / "score.json"], groups=counted / "groups.csv",
    ).read_text(encoding="utf-8")  # fmt: skip
    for text in (
        "M &lt;1&gt;",
        "0.900",
        "1 of 2 regions differ",
        "300 cells, 0 outside",
        "data:image/png",
        "150",
    ):
        assert text in page, text
    assert "&lt;script&gt;nuclei" in page
    assert "<script" not in page.replace("&lt;script", "")
    assert "http://" not in page
    assert "https://" not in page


def test_what_it_cannot_show_is_refused(counted):
    with pytest.raises(CanvasError, match="--cells and --atlas together"):
        brain_report([counted / "regions.csv"], counted / "r.html", cells=counted / "placed.csv")
    with pytest.raises(CanvasError, match="no table of regions"):
        brain_report([counted / "placed.csv"], counted / "r.html")
    with pytest.raises(CanvasError, match="is no PNG"):
        brain_report([counted / "regions.csv"], counted / "r.html", figures=[counted / "regions.csv"])


def test_on_the_command_line(small, counted):  # noqa: F811
    words = [
        "brain-report",
        counted / "regions.csv",
        "--out",
        counted / "r.html",
        "--cells",
        counted / "placed.csv",
    ]
    atlas = ["--atlas", small.labels_path, "--table", small.table, "--atlas-voxel-um", 100, 100, 100]
    assert main([str(one) for one in [*words, *atlas]]) == 0
    assert (counted / "r.html").stat().st_size > 20_000
