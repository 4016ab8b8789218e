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
        ("a.json", '[{"z": 1, "y": 2, "x": 3}]', "is a list of records.*; write it as CSV"),
    ],
)
def test_other_files_say_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(CanvasError, match=message):
        Points.read(tmp_path / name)
