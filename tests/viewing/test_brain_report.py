"""The page of a brain: complete, self-contained, escaped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.analysis.regions.read_atlas import open_atlas
from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import find
from canvas_fm.viewing.brain_report.planes import densities_of, plane_name
from canvas_fm.viewing.brain_report.report import brain_report, conclusion_of, model_rows
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
        title="M <1>", atlases=[atlas], cells=[counted / "placed.csv"],
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
    assert "<strong>cortex</strong>" in page  # q < 0.05; a fold of 2, from 1.41 to 2.83
    assert "<td>2.00</td><td>1.41 to 2.83</td>" in page
    assert "<strong>thalamus" not in page
    assert str(counted) not in page.split("Provenance")[1]  # files as seen from the page
    assert "&lt;script&gt;nuclei" in page
    assert "<script" not in page.replace("&lt;script", "")
    assert "http://" not in page
    assert "https://" not in page


def test_a_page_of_two_brains_lists_both(counted):
    (counted / "m2").mkdir()
    for name in ("regions.csv", "regions.csv.json"):
        (counted / "m2" / name).write_bytes((counted / name).read_bytes())
    tables = [counted / "regions.csv", counted / "m2" / "regions.csv"]
    text = brain_report(tables, counted / "r.html").read_text(encoding="utf-8")
    assert "<h2>Brains</h2>" in text
    assert f"<h2>{counted.name}</h2>" in text  # tables that are called alike have their folders' names
    assert text.count('<th scope="row">m2</th><td class="text">cells</td><td>300</td>') == 1
    text = brain_report(tables, counted / "r.html", names=["one", "two"]).read_text(encoding="utf-8")
    assert "<h2>two</h2>" in text
    assert '<p class="conclusion">one, ' in text  # counts, where no groups are compared
    with pytest.raises(CanvasError, match="1 name for 2 tables"):
        brain_report(tables, counted / "r.html", names=["one"])


def test_it_begins_with_what_differs_between_the_groups():
    rows = [
        {"name": name, "fold": "2.00", "pair": "b over a", "differs": differs}
        for name, differs in (("CA1", True), ("DG", True), ("CTX", False))
    ]
    found = conclusion_of([("m1:", "3")], {"rows": rows, "found": 2, "tested": 3})
    assert found == (
        "2 of 3 regions differ between the groups in the density of cells: CA1 2.00 times (b over a); "
        "DG 2.00 times (b over a)."
    )
    assert "None of 3 regions differs" in conclusion_of([], {"rows": rows[2:], "found": 0, "tested": 3})
    many = conclusion_of([(f"m{at}:", "3") for at in range(5)], None)
    assert many == "m0: 3 cells; m1: 3 cells; m2: 3 cells; 2 more brains below."
    assert conclusion_of([], None) == ""


def test_planes_have_the_names_of_anatomy_where_the_atlas_says_how_it_lies(small):  # noqa: F811
    options = {"table": small.table, "atlas_voxel_um": (100, 100, 100)}
    known = open_atlas(small.labels_path, atlas_orientation="sal", **options)
    assert [plane_name(known, axis) for axis in range(3)] == ["horizontal", "coronal", "sagittal"]
    unknown = open_atlas(small.labels_path, **options)
    assert plane_name(unknown, 2) == "plane across x"


def test_a_region_is_coloured_by_its_density():
    plane = np.array([[0, 5, 5], [7, 7, 9]])
    found = densities_of(plane, {0: 3.0, 5: 2.5, 7: 1.0})
    np.testing.assert_array_equal(found, [[np.nan, 2.5, 2.5], [1, 1, np.nan]])


def test_a_refiner_shows_its_scores_and_its_calibration():
    shown = model_rows("refiner-microglia")
    config = json.loads((find("model", "refiner-microglia") / "config.json").read_text(encoding="utf-8"))
    pooled = config["cross_validation"]["pooled"]
    assert (shown["kind"], shown["sha256"]) == ("refiner", config["sha256"])
    assert float(shown["facts"]["calibration error"]) == pytest.approx(pooled["calibration_error"], rel=0.01)
    assert float(shown["facts"]["F1, cross-validated"]) == pytest.approx(pooled["f1"], abs=1e-3)


def test_what_it_cannot_show_is_refused(counted):
    with pytest.raises(CanvasError, match="--cells and --atlas together"):
        brain_report([counted / "regions.csv"], counted / "r.html", cells=[counted / "placed.csv"])
    with pytest.raises(CanvasError, match="no table of regions"):
        brain_report([counted / "placed.csv"], counted / "r.html")
    with pytest.raises(CanvasError, match="1 table of cells and 2 of regions; expected one of"):
        brain_report(
            [counted / "regions.csv"] * 2, counted / "r.html", cells=[counted / "placed.csv"], atlases=[]
        )
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


def test_a_table_without_the_json_beside_it_is_shown(counted):
    (counted / "regions.csv.json").unlink()
    brain_report([counted / "regions.csv"], counted / "r.html")
    assert "regions by count" in (counted / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "stated",
    ["[]", "{", '{"channels": 3}', '{"channels": {"a": {"points": "many"}}}', '{"channels": {"a": {}}}'],
)
def test_a_damaged_json_beside_a_table_is_told(stated, counted):
    (counted / "regions.csv.json").write_text(stated, encoding="utf-8")
    with pytest.raises(CanvasError, match=r"regions\.csv\.json is damaged"):
        brain_report([counted / "regions.csv"], counted / "r.html")


def test_texts_where_a_table_holds_numbers_are_told(counted):
    path = counted / "regions.csv"
    first, row, rest = path.read_text(encoding="utf-8").split("\n", 2)
    values = row.split(",")
    values[first.split(",").index("count")] = "many"
    path.write_text("\n".join([first, ",".join(values), rest]), encoding="utf-8")
    with pytest.raises(CanvasError, match=r"regions\.csv cannot be shown \(.*many.*canvas-fm regions wrote"):
        brain_report([path], counted / "r.html")


def test_placed_cells_that_are_no_numbers_are_told(small, counted):  # noqa: F811
    path = counted / "placed.csv"
    first, row, rest = path.read_text(encoding="utf-8").split("\n", 2)
    values = row.split(",")
    values[first.split(",").index("atlas_y_um")] = "77.8x"
    path.write_text("\n".join([first, ",".join(values), rest]), encoding="utf-8")
    atlas = open_atlas(small.labels_path, table=small.table, atlas_voxel_um=(100, 100, 100))
    with pytest.raises(CanvasError, match=r"placed\.csv cannot be shown"):
        brain_report([counted / "regions.csv"], counted / "r.html", atlases=[atlas], cells=[path])


def test_a_table_that_was_changed_is_told_of(counted, caplog):
    path = counted / "regions.csv"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    brain_report([path], counted / "r.html")
    assert "regions.csv was changed after regions.csv.json was written" in caplog.text
