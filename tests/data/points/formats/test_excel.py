"""Points as .xlsx: what is written comes back, what a sheet cannot hold is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from canvas_fm.data.points.points import Points, convert_points
from canvas_fm.errors import CanvasError, MissingExtra

openpyxl = pytest.importorskip("openpyxl")


def book(path, **sheets):
    made = openpyxl.Workbook()
    made.remove(made.active)
    for name, rows in sheets.items():
        sheet = made.create_sheet(name)
        for row in rows:
            sheet.append(row)
    made.save(path)
    return path


def test_what_is_written_is_read_back(tmp_path):
    names = np.array(["a", "=1+1", 'x, "y"\nz'])
    points = Points(
        np.array([[1, 2, 3], [1 / 3, 5, 6], [7, 8, 9.25]]),
        {"score": np.array([0.1, np.nan, 1e-300]), "id": np.array([1, -2, 2**53]), "name": names},
        {"volume": "b"},
    )
    points.write(tmp_path / "c.xlsx")
    back = Points.read(tmp_path / "c.xlsx")
    np.testing.assert_array_equal(back.zyx, points.zyx)
    np.testing.assert_array_equal(back.columns["score"], points.columns["score"])
    assert back.columns["id"].tolist() == [1, -2, 2**53]
    assert back.columns["name"].tolist() == names.tolist()
    assert back.meta == {"volume": "b"}
    convert_points(tmp_path / "c.xlsx", tmp_path / "c.csv")
    np.testing.assert_array_equal(Points.read(tmp_path / "c.csv").zyx, points.zyx)


def test_titles_blank_rows_and_the_sheet_of_points_are_found(tmp_path):
    rows = [["Cells of brain 7"], [], ["x", None, "y", "z", "label"], [30, None, 20, 10, 1], [],
            [31, None, 21, 11, None]]  # fmt: skip
    path = book(tmp_path / "c.xlsx", notes=[["who", "when"], ["me", 2024]], cells=rows)
    points = Points.read(path)
    assert points.zyx.tolist() == [[10, 20, 30], [11, 21, 31]]
    np.testing.assert_array_equal(points.columns["label"], [1, np.nan])


def test_two_sheets_of_points_are_refused(tmp_path):
    rows = [["z", "y", "x"], [1, 2, 3]]
    with pytest.raises(CanvasError, match=r"2 sheets \(left, right\), of which 2 have columns"):
        Points.read(book(tmp_path / "c.xlsx", left=rows, right=rows))


def test_what_is_no_workbook_is_refused(tmp_path):
    (tmp_path / "c.xlsx").write_text("z,y,x\n1,2,3\n")
    with pytest.raises(CanvasError, match="cannot be read as an Excel workbook"):
        Points.read(tmp_path / "c.xlsx")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([np.inf]), "infinity"),
        (np.array([2**60]), "above 2⁵³"),
        (np.array(["a\x00b"]), "no cell takes"),
        (np.array(["a" * 40_000]), "no cell takes"),
    ],
)
def test_what_a_sheet_cannot_hold_is_refused(tmp_path, values, message):
    with pytest.raises(CanvasError, match=message):
        Points(np.zeros((1, 3)), {"a": values}).write(tmp_path / "c.xlsx")
    assert not list(tmp_path.iterdir())


def test_without_openpyxl_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "c.xlsx").write_bytes(b"PK\x03\x04")
    for act in (Points.read, Points(np.zeros((1, 3))).write):
        with pytest.raises(MissingExtra, match=r"canvas-fm\[excel\]"):
            act(tmp_path / "c.xlsx")


def test_a_formula_that_nobody_computed_is_no_blank(tmp_path):
    """openpyxl writes formulas without values; rows of them would be left out, labels be unlabelled."""
    for column, value in (("z", "=1+1"), ("label", "=1")):
        row = {"z": 1, "y": 2, "x": 3, "label": 1} | {column: value}
        path = book(tmp_path / f"{column}.xlsx", s=[list(row), list(row.values())])
        with pytest.raises(CanvasError, match=r"[AD]2 holds a formula without a value; open it in Excel"):
            Points.read(path)
