"""Files whose name says another format than their content: what they hold, and what to do about it."""

from __future__ import annotations

import io

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from canvas_fm import Points
from canvas_fm.errors import CanvasError

ROW = '{"z": 1, "y": 2, "x": 3}'


def parquet() -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"z": [1.0], "y": [2.0], "x": [3.0]}), content)
    return content.getvalue()


def npy() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros((2, 3)))
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", parquet(), r"is no text, it is a Parquet file; call it \.parquet"),
        ("a.csv", npy(), r"is no text, it is a numpy array; call it \.npy"),
        ("a.csv", b'<?xml version="1.0"?><CellCounter_Marker_File/>', r"is XML; call it \.xml"),
        ("a.csv", f"[{ROW}]".encode(), r"is JSON; call it \.json"),
        ("a.csv", ROW.encode(), r"is JSON; call it \.json"),
        ("a.csv", b"", r"a\.csv is empty; give a table with columns z, y, x"),
        ("a.csv", b"\n \n", r"a\.csv is empty; give a table with columns z, y, x"),
        ("a.csv", b'"z,y,x"\n"1,2,3"\n', "each of its lines is one text in quotes"),
        ("a.json", b"z,y,x\n1,2,3\n", r"not readable as JSON.*; call a table \.csv"),
        ("a.json", b"", "not readable as JSON.*; it is empty"),
        ("a.json", f"{ROW}\n{ROW}\n".encode(), "of one object a line, write it as CSV with columns z, y, x"),
        ("a.json", b"[[1, 2, 3]]", "is a list of lists, not of Neuroglancer's annotations; write it as CSV"),
        ("a.json", b'["1,2,3"]', "is a list of values, not of Neuroglancer's annotations"),
        ("a.json", b"5", "is a lone int, not of Neuroglancer's annotations"),
        ("a.json", b'{"z": {"0": 1}, "y": {"0": 2}, "x": {"0": 3}}', "is a table in JSON, as pandas writes"),
        ("a.json", b'{"columns": ["z", "y", "x"], "data": [[1, 2, 3]]}', "is a table in JSON"),
    ],
)
def test_what_a_file_holds_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CanvasError, match=message):
        Points.read(tmp_path / name)


def test_planes_given_as_points_are_said_as_that(tmp_path):
    (tmp_path / "z000.TIF").write_bytes(b"II*")
    with pytest.raises(CanvasError, match="is a folder of TIFF planes, where points are expected"):
        Points.read(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet", ".npy", ".json", ".xml", ".nml", ".yml"])
def test_pointers_of_git_annex_are_said_as_that_in_every_format(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("/annex/objects/SHA256E-s10--ab\n")
    with pytest.raises(CanvasError, match=f"{suffix} holds a pointer of git-annex .*git annex get"):
        Points.read(path)
