"""Points through other programs' files and back; the files themselves; and what is refused."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest

from canvas_fm.data.points.formats.read_write import (
    FORMATS,
    format_of,
    voxel_um_of,
)
from canvas_fm.data.points.points import Points, convert_points
from canvas_fm.errors import CanvasError

VOXEL_UM = (6.0, 1.62, 1.8)
SUFFIX = {"csv": "csv", "parquet": "parquet", "xlsx": "xlsx", "napari": "csv", "canvas": "csv"} | {
    "cellfinder": "xml",
    "webknossos": "nml",
    "neuroglancer": "json",
}


def some(n=7, whole=False):
    """No two coordinates alike, so that a swapped axis shows."""
    zyx = np.array([[1000 + i, 200 + 10 * i, i] for i in range(n)], dtype=np.float64)
    return Points(zyx if whole else zyx + np.array([0.1, 0.25, 1 / 3]))


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "cellfinder"])
def test_positions_come_back_bit_for_bit(kind, tmp_path):
    random = np.random.default_rng(0)
    zyx = random.choice([-1, 1], (500, 3)) * 10 ** random.uniform(-9, 6, (500, 3))
    zyx[:3] = [[0, 0.1, 0.5], [-0.5, 1 / 3, 4095.999999], [1e-15, 2**40 + 0.5, -1e-6]]
    path = tmp_path / f"points.{SUFFIX[kind]}"
    Points(zyx).write(path, kind, voxel_um=VOXEL_UM)
    # a sheet of Excel holds 16 digits
    np.testing.assert_allclose(Points.read(path, kind).zyx, zyx, rtol=1e-15 if kind == "xlsx" else 0, atol=0)
    Points(zyx[:0]).write(path, kind, voxel_um=VOXEL_UM)
    assert len(Points.read(path, kind)) == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_voxels_and_the_axes_survive_every_pair_of_formats(kind, tmp_path):
    points = some(whole=True)
    first = tmp_path / f"a.{SUFFIX[kind]}"
    points.write(first, kind, voxel_um=VOXEL_UM)
    for other in FORMATS:
        second = tmp_path / f"b.{SUFFIX[other]}"
        convert_points(first, second, voxel_um=VOXEL_UM, source_format=kind, out_format=other)
        np.testing.assert_array_equal(Points.read(second, other).zyx, points.zyx)


@pytest.mark.parametrize("kind", ["webknossos", "neuroglancer", "csv"])
def test_the_voxel_size_travels_with_the_file(kind, tmp_path):
    path = tmp_path / f"a.{SUFFIX[kind]}"
    some().write(path, kind, voxel_um=VOXEL_UM)
    assert voxel_um_of(Points.read(path).meta) == VOXEL_UM


def test_points_read_and_write_go_by_the_suffix(tmp_path):
    points = Points(some(whole=True).zyx, {"type": np.array([2, 1, 2, 2, 1, 2, 2])})
    points.write(tmp_path / "cells.xml")
    back = Points.read(tmp_path / "cells.xml")
    order = np.argsort(points.columns["type"], kind="stable")
    np.testing.assert_array_equal(back.zyx, points.zyx[order])
    assert back.columns["type"].tolist() == [1, 1, 2, 2, 2, 2, 2]


# --- cellfinder


def test_cellfinders_own_file_is_read_x_y_z(real_data, tmp_path):
    path = real_data / "cellfinder_s2p" / "cell_classification.xml"
    points = Points.read(path)
    text = path.read_text()
    marks = re.findall(r"<MarkerX>(\d+)</MarkerX>\s*<MarkerY>(\d+)</MarkerY>\s*<MarkerZ>(\d+)", text)
    assert points.zyx[:, ::-1].astype(int).tolist() == [list(map(int, mark)) for mark in marks]
    assert points.zyx[0].tolist() == [10, 308, 132]
    assert set(points.columns["type"].tolist()) == {2}
    points.write(tmp_path / "again.xml")
    assert (
        "".join((tmp_path / "again.xml").read_text().split()).casefold() == "".join(text.split()).casefold()
    )


def test_fractions_are_rounded_to_the_nearest_voxel_and_said(tmp_path, caplog):
    points = Points(np.array([[1.5, 2.49, 3], [4, 5, 6]]), {"score": np.array([0.5, 1.0])})
    with caplog.at_level(logging.WARNING):
        points.write(tmp_path / "a.xml")
    assert "1 of 2 positions were rounded" in caplog.text
    assert "cannot hold the columns score" in caplog.text
    assert Points.read(tmp_path / "a.xml").zyx.tolist() == [[2, 2, 3], [4, 5, 6]]


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>
<CellCounter_Marker_File><Marker_Data><Marker_Type><Type>&b;</Type></Marker_Type></Marker_Data>
</CellCounter_Marker_File>"""
OUTSIDE = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]><things>&e;</things>'
MARKER = "<CellCounter_Marker_File><Marker_Data><Marker_Type><Type>2</Type><Marker>{}</Marker>"
END = "</Marker_Type></Marker_Data></CellCounter_Marker_File>"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("bomb.xml", BOMB, "declares a document type"),
        ("outside.nml", OUTSIDE, "declares a document type"),
        ("other.xml", "<svg><circle/></svg>", "not cellfinder XML: its root is <svg>"),
        ("other.nml", "<svg/>", "not an NML: its root is <svg>"),
        ("cut.xml", "<CellCounter_Marker_File><Marker_Data>", "not readable as XML"),
        ("empty.nml", "", "not readable as XML"),
        (
            "missing.xml",
            MARKER.format("<MarkerX>1</MarkerX><MarkerY>1</MarkerY>") + END,
            "marker 1 has no MarkerZ",
        ),
        (
            "text.xml",
            MARKER.format("<MarkerX>one</MarkerX>") + END,
            "MarkerX is 'one'; expected a finite number",
        ),
        (
            "nan.nml",
            '<things><thing><nodes><node id="1" x="nan" y="1" z="2"/></nodes></thing></things>',
            "x is 'nan'",
        ),
        (
            "none.nml",
            '<things><thing><nodes><node id="1" x="1" y="1"/></nodes></thing></things>',
            "z is None",
        ),
        (
            "unit.nml",
            '<things><parameters><scale x="1" y="1" z="1" unit="mile"/></parameters></things>',
            "'mile'",
        ),
    ],
)
def test_xml_that_is_refused(name, content, sentence, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(CanvasError, match=sentence):
        Points.read(tmp_path / name)


# --- WebKnossos


def test_an_nml_keeps_trees_and_comments(tmp_path):
    columns = {"tree": np.array(["a & b", "c", "c"]), "comment": np.array(["", 'say "hi" <b>', ""])}
    Points(some(3).zyx, columns).write(tmp_path / "a.nml", voxel_um=VOXEL_UM)
    back = Points.read(tmp_path / "a.nml")
    np.testing.assert_array_equal(back.zyx, some(3).zyx)
    assert {name: values.tolist() for name, values in back.columns.items()} == {
        name: values.tolist() for name, values in columns.items()
    }


def test_an_nml_as_webknossos_writes_it(tmp_path):
    (tmp_path / "a.nml").write_text(
        '<things><meta name="writer"/><parameters><experiment name="brain"/>'
        '<scale x="1800.0" y="1800.0" z="4000.0"/><offset x="0" y="0" z="0"/></parameters>'
        '<thing id="1" name="explorative" color.r="1">'
        '<nodes><node id="3" radius="20.0" x="1.0" y="2.0" z="3.0" rotX="0.0" inVp="0" time="0"/>'
        '<node id="9" radius="20.0" x="10" y="20" z="30"/></nodes><edges>'
        '<edge source="3" target="9"/></edges></thing>'
        '<branchpoints/><comments/><groups><group id="1" name="g"/></groups></things>'
    )
    points = Points.read(tmp_path / "a.nml")
    assert points.zyx.tolist() == [[3, 2, 1], [30, 20, 10]]
    assert points.columns == {}
    assert voxel_um_of(points.meta) == (4.0, 1.8, 1.8)


# --- Neuroglancer


def test_a_voxels_centre_is_half_a_voxel_on_in_neuroglancer(tmp_path):
    Points(np.array([[1, 2, 3.0]])).write(tmp_path / "a.json", voxel_um=(4.0, 1.8, 1.62))
    layer = json.loads((tmp_path / "a.json").read_text())["layers"][0]
    assert layer["annotations"] == [{"type": "point", "id": "1", "point": [3.5, 2.5, 1.5]}]
    dimensions = {"x": [1.62e-6, "m"], "y": [1.8e-6, "m"], "z": [4e-6, "m"]}
    assert layer["source"] == {"url": "local://annotations", "transform": {"outputDimensions": dimensions}}


def test_numbers_become_properties_and_come_back(tmp_path, caplog):
    columns = {
        "score": np.array([0.1, np.nan, 1 / 3]),
        "label": np.array([1, 0, -1]),
        "description": np.array(["a", "", 'ü"']),
        "region": np.array(["CA1", "CA3", "DG"]),
    }
    with caplog.at_level(logging.WARNING):
        Points(some(3).zyx, columns).write(tmp_path / "a.json", voxel_um=VOXEL_UM)
    assert "cannot hold the columns region" in caplog.text
    back = Points.read(tmp_path / "a.json").columns
    np.testing.assert_array_equal(back["score"], columns["score"])
    assert back["label"].tolist() == [1, 0, -1]
    assert back["label"].dtype == np.int64
    assert back["description"].tolist() == ["a", "", 'ü"']
    assert "region" not in back


def test_axes_are_found_by_name_and_other_annotations_left_out(tmp_path, caplog):
    state = {
        "dimensions": {"z": [4e-6, "m"], "c^": [1, ""], "y": [1.8e-6, "m"], "x": [1.8e-6, "m"]},
        "layers": [
            {"type": "image", "source": "zarr://a"},
            {"type": "annotation", "name": "one", "source": "local://annotations", "annotations": [
                {"type": "point", "point": [1.5, 0, 2.5, 3.5], "id": "a"},
                {"type": "line", "pointA": [0, 0, 0, 0], "pointB": [1, 1, 1, 1], "id": "b"},
            ]},
            {"type": "annotation", "name": "two", "annotations": [{"point": [4.5, 0, 5.5, 6], "id": "c"}]},
        ],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(state))
    with caplog.at_level(logging.WARNING):
        points = Points.read(tmp_path / "a.json")
    assert points.zyx.tolist() == [[1, 2, 3], [4, 5, 5.5]]
    assert points.columns["layer"].tolist() == ["one", "two"]
    assert voxel_um_of(points.meta) == (4.0, 1.8, 1.8)
    assert "1 of 2 annotations are no points" in caplog.text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("{}", "holds no layer with annotations"),
        ('{"layers": 3}', "'layers' is no list"),
        ('{"annotations": 3}', "'annotations' is no list"),
        ('{"annotations": [{"type": "point", "point": [1, 2]}]}', r"annotation 1 has the point \[1, 2\]"),
        ('{"annotations": [{"type": "point", "point": [1, 2, "x"]}]}', "expected numbers"),
        ('{"annotations": [{"type": "point", "point": [1, 2, NaN]}]}', "holds NaN; expected finite numbers"),
        ('{"annotations": [], "source": {"transform": {"matrix": [[1]]}}}', "have a transform"),
        (
            '{"annotations": [], "source": {"transform": {"outputDimensions": {"a": 1}}}}',
            "expected z, y and x",
        ),
    ],
)
def test_json_that_is_refused(content, sentence, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CanvasError, match=sentence):
        Points.read(tmp_path / "a.json")


# --- tables


def test_naparis_file(tmp_path):
    points = Points(some(3).zyx, {"score": np.array([0.5, 0.25, 0.125])})
    points.write(tmp_path / "a.csv", "napari")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "index,axis-0,axis-1,axis-2,score"
    assert lines[1] == f"0,1000.1,200.25,{1 / 3},0.5"
    back = Points.read(tmp_path / "a.csv")
    np.testing.assert_array_equal(back.zyx, points.zyx)
    assert back.columns["score"].tolist() == [0.5, 0.25, 0.125]
    assert list(back.columns) == ["score"]


def test_the_canvas_ground_truth_by_its_column_names_in_region_coordinates(tmp_path):
    (tmp_path / "NeuN_brain_1_region1_gt.csv").write_text("X,Y,Z,annotator\n1,2,3,a\n4,5,6,b\n")
    points = convert_points(
        tmp_path / "NeuN_brain_1_region1_gt.csv",
        tmp_path / "cells.csv",
        origin_zyx=(100, 200, 300),
        source_format="canvas",
    )
    assert points.zyx.tolist() == [[103, 202, 301], [106, 205, 304]]
    assert Points.read(tmp_path / "cells.csv").columns["annotator"].tolist() == ["a", "b"]
    points.write(tmp_path / "back_gt.csv", "canvas")
    assert (tmp_path / "back_gt.csv").read_text().splitlines()[:2] == [
        "x,y,z,annotator",
        "301.0,202.0,103.0,a",
    ]


def test_other_column_names_a_bom_and_semicolons(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffid;pos_x;pos_y;plane\n7;1;2;3\n".encode())
    with pytest.raises(CanvasError, match="has no column z, y, x; found id, pos_x, pos_y, plane"):
        Points.read(path)
    points = Points.read(path, columns=["plane", "pos_y", "pos_x"])
    assert points.zyx.tolist() == [[3, 2, 1]]
    assert points.columns["id"].tolist() == [7]
    with pytest.raises(CanvasError, match="has no column 'pos_z'; found id"):
        Points.read(path, columns=["pos_z", "pos_y", "pos_x"])
    with pytest.raises(CanvasError, match="expected three names"):
        Points.read(path, columns=["plane", "plane", "pos_x"])


def test_points_of_more_or_fewer_axes_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("index,axis-0,axis-1,axis-2,axis-3\n0,1,2,3,4\n")
    with pytest.raises(CanvasError, match="more than three axes"):
        Points.read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("index,axis-0,axis-1\n0,1,2\n")
    with pytest.raises(CanvasError, match="has no column z, y, x"):
        Points.read(tmp_path / "b.csv")


# --- the dispatcher


def test_formats_are_known_by_suffix_or_name(tmp_path):
    assert [format_of(f"a.{suffix}") for suffix in ("CSV", "pq", "xml", "nml", "json")] == [
        "csv", "parquet", "cellfinder", "webknossos", "neuroglancer",
    ]  # fmt: skip
    with pytest.raises(CanvasError, match="did you mean 'cellfinder'"):
        format_of("a.csv", "celfinder")
    with pytest.raises(CanvasError, match="known: csv, parquet"):
        format_of("a.csv", "zzz")
    with pytest.raises(CanvasError, match=r"the suffix '\.doc' says no format"):
        Points.read(_touch(tmp_path / "a.doc"))
    with pytest.raises(CanvasError, match="no points file at"):
        Points.read(tmp_path / "none.xml")
    with pytest.raises(CanvasError, match="have no columns to name"):
        Points.read(_touch(tmp_path / "a.xml"), columns=["a", "b", "c"])
    some().write(tmp_path / "a.csv")
    with pytest.raises(CanvasError, match="there is no folder"):
        convert_points(tmp_path / "a.csv", tmp_path / "nowhere" / "b.csv")


def test_a_format_in_space_needs_one_voxel_size(tmp_path):
    with pytest.raises(CanvasError, match="give the voxel size: --voxel-um Z Y X"):
        some().write(tmp_path / "a.nml")
    stated = Points(some().zyx, meta={"voxel_um": "4 1.8 1.8"})
    with pytest.raises(CanvasError, match=r"state voxels of 4\.0 1\.8 1\.8 µm, and 6\.0 1\.62 1\.8"):
        stated.write(tmp_path / "a.nml", voxel_um=VOXEL_UM)
    stated.write(tmp_path / "a.nml")


def _touch(path):
    path.write_text("")
    return path


LABELLED = Points(
    np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), {"label": np.array([1, 0, -1])}, {"voxel_um": "4 2 2"}
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv", None), ("a.parquet", None), ("a.xlsx", None), ("n.csv", "napari"), ("c.csv", "canvas"),
     ("a.nml", None), ("a.json", None)],
)  # fmt: skip
def test_labels_of_a_review_go_through_every_format(tmp_path, name: str, kind: str | None):
    LABELLED.write(tmp_path / name, kind)
    back = Points.read(tmp_path / name, kind)
    places = {tuple(zyx): label for zyx, label in zip(back.zyx.tolist(), back.columns["label"], strict=True)}
    assert places == {(1, 2, 3): 1, (4, 5, 6): 0, (7, 8, 9): -1}


def test_labels_become_cellfinders_types(tmp_path, caplog):
    LABELLED.write(tmp_path / "a.xml")
    back = Points.read(tmp_path / "a.xml")
    assert dict(zip(map(tuple, back.zyx.tolist()), back.columns["type"].tolist(), strict=True)) == {
        (1, 2, 3): 2,
        (4, 5, 6): 1,
    }
    assert "1 of 3 rows are labelled neither cell nor none" in caplog.text
