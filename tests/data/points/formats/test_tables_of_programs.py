"""Parquet of pandas and Dask, TrackMate's hidden spots, slices from 1, and files that are no points."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm import Points
from canvas_fm.errors import CanvasError


def test_parquet_of_lists_and_of_booleans_with_blanks(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {"z": [1, 4], "y": [2, 5], "x": [3, 6], "ok": [True, None], "near": [[1], [2, 3]]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    points = Points.read(tmp_path / "a.parquet")
    np.testing.assert_array_equal(points.columns["ok"], [1, np.nan])
    assert points.columns["near"].tolist() == ["[1]", "[2, 3]"]
    points.write(tmp_path / "a.csv")


def test_parquet_with_a_column_twice_and_in_parts(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = [pa.array([n]) for n in (1, 2, 3, 9)]
    parquet.write_table(pa.table(columns, names=["z", "y", "x", "z"]), tmp_path / "a.parquet")
    with pytest.raises(CanvasError, match="has the column z more than once"):
        Points.read(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").mkdir()
    parquet.write_table(pa.table(columns[:3], names=["z", "y", "x"]), tmp_path / "b.parquet/part.0.parquet")
    with pytest.raises(CanvasError, match="is a folder of Parquet files; write them as one"):
        Points.read(tmp_path / "b.parquet")


def test_hidden_spots_of_trackmates_table_are_left_out(tmp_path, caplog):
    header = "ID,POSITION_X,POSITION_Y,POSITION_Z,FRAME,VISIBILITY\n,(micron),(micron),(micron),,\n"
    (tmp_path / "a.csv").write_text(header + "1,6,4,4,0,1\n2,60,40,40,0,0\n")
    assert Points.read(tmp_path / "a.csv", voxel_um=(4, 2, 2)).zyx.tolist() == [[1, 2, 3]]
    assert "1 of 2 spots" in caplog.text


def test_slices_of_the_3d_objects_counter_are_said(tmp_path, caplog):
    (tmp_path / "a.csv").write_text(",Volume (micron^3),Nb of obj. voxels,X,Y,Z\n1,12,4,3,2,1\n")
    assert Points.read(tmp_path / "a.csv").zyx.tolist() == [[1, 2, 3]]
    assert "Z of the 3D Objects Counter counts from 1" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("RoiSet.zip", "PK", "are not read; unpack it; write ImageJ's regions"),
        ("a.roi", "Iout", "write ImageJ's regions of interest as a table"),
        ("a.xls", "x", "save the sheet as .xlsx or CSV"),
        ("a.swc", "1 1 3 2 1 1 -1", "a skeleton's nodes are no cells"),
        ("a.txt", "# id type x y z radius parent\n1 1 3 2 1 1 -1\n", "holds the nodes of a skeleton"),
        ("a.json", '[{"z": 1, "y": 2, "x": 3}]', "is a list of records.*; write it as CSV"),
    ],
)
def test_other_files_say_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(CanvasError, match=message):
        Points.read(tmp_path / name)


def counter(*groups: str) -> str:
    return f"<CellCounter_Marker_File><Marker_Data>{''.join(groups)}</Marker_Data></CellCounter_Marker_File>"


def group(*parts: object) -> str:
    """A group of markers, z of each by a number, and its type by a text."""
    place = "<Marker><MarkerX>3</MarkerX><MarkerY>2</MarkerY><MarkerZ>{}</MarkerZ></Marker>"
    texts = (place.format(part) if isinstance(part, int) else f"<Type>{part}</Type>" for part in parts)
    return f"<Marker_Type>{''.join(texts)}</Marker_Type>"


def test_a_type_may_stand_after_its_markers(tmp_path):
    (tmp_path / "a.xml").write_text(counter(group(5, 6, "2"), group(7, "1"), group("2"), group("2", 8)))
    points = Points.read(tmp_path / "a.xml")
    assert list(zip(points.zyx[:, 0].tolist(), points.columns["type"].tolist(), strict=True)) == [
        (5, 2), (6, 2), (7, 1), (8, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "message"),
    [((5, "2.7"), "a Type is 2.7"), ((5,), "marker 1 stands in a Marker_Type without a Type")],
)
def test_markers_of_no_type_are_refused(tmp_path, parts, message):
    (tmp_path / "a.xml").write_text(counter(group(*parts)))
    with pytest.raises(CanvasError, match=message):
        Points.read(tmp_path / "a.xml")


def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text('z,y,x,note\n1,2,3,a\n4,5,6,"7\n7,8,9,c\n1,1,1,d\n')
    with pytest.raises(CanvasError, match="row 2 opens a quote that is never closed"):
        Points.read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text('z,y,x,note\n1,2,3,"a\nb"\n4,5,6,7" wide\n')
    assert Points.read(tmp_path / "b.csv").zyx.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_suffix_in_any_case(tmp_path):
    (tmp_path / "A.Csv.Gz").write_text("z,y,x\n1,2,3\n")
    assert Points.read(tmp_path / "A.Csv.Gz").zyx.tolist() == [[1, 2, 3]]


INVISIBLE = ["\ufeff\ufeffz,y,x", "z,\ufeffy,x", "\u00a0z,y\u200b,x\u2060"]


@pytest.mark.parametrize("header", INVISIBLE)
def test_characters_that_nobody_sees_are_no_part_of_a_name(tmp_path, header):
    (tmp_path / "a.csv").write_text(f"{header}\n1,2,3\n", encoding="utf-8")
    assert Points.read(tmp_path / "a.csv").zyx.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Position.Z,Position.Y,Position.X,Unit", [0.5, 1.5, 2.5]),  # Imaris through R
        ("z..µm.,y..µm.,x..µm.,n", [1, 2, 3]),
        ("Z/µm,Y/µm,X/µm,n", [1, 2, 3]),
        ("z in um,y in um,x in um,n", [1, 2, 3]),
    ],
)
def test_units_in_names_as_r_and_people_write_them(tmp_path, header, expected):
    (tmp_path / "a.csv").write_text(f"{header}\n4,4,6,um\n", encoding="utf-8")
    assert Points.read(tmp_path / "a.csv", voxel_um=(4, 2, 2)).zyx.tolist() == [expected]


def test_imaris_without_a_unit_says_so(tmp_path):
    (tmp_path / "a.csv").write_text("Position X,Position Y,Position Z,Unit\n6,4,4,\n")
    with pytest.raises(CanvasError, match="does not say the unit of Position Z"):
        Points.read(tmp_path / "a.csv", voxel_um=(4, 2, 2))
    (tmp_path / "a.csv").write_text("Position X,Position Y,Position Z,Unit\n6,4,4,um\n6,4,4,\n")
    with pytest.raises(CanvasError, match="has positions in no unit, um; expected one unit"):
        Points.read(tmp_path / "a.csv", voxel_um=(4, 2, 2))


@pytest.mark.parametrize("name", ["a.fcsv", "a.csv"])
def test_markups_of_3d_slicer_are_no_voxels(tmp_path, name):
    """Their x, y and z are mm along a patient's axes."""
    about = (
        "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n# columns = id,x,y,z,ow,label\n"
    )
    (tmp_path / name).write_text(about + "1,3.0,2.0,1.0,0,F-1\n")
    with pytest.raises(CanvasError, match=r"in mm along a patient's axes; write .*voxels \(IJK\)"):
        Points.read(tmp_path / name)


def test_centers_of_cellprofilers_measured_shapes(tmp_path):
    names = "ObjectNumber,AreaShape_Center_X,AreaShape_Center_Y,AreaShape_Center_Z"
    (tmp_path / "a.csv").write_text(f"{names}\n1,3,2,1\n")
    assert Points.read(tmp_path / "a.csv").zyx.tolist() == [[1, 2, 3]]
