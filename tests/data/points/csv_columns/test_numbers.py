"""Separators of thousands are never decimals, and decimal commas never separators."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm import Points
from canvas_fm.errors import CanvasError


def read(folder, text: str, name: str = "cells.csv") -> Points:
    (folder / name).write_text(text, encoding="utf-8")
    return Points.read(folder / name)


@pytest.mark.parametrize(
    "text",
    [
        "z;y;x;score\n12;1.234;987;0,97\n4;2.345;11;0,5\n",  # German, beside decimal commas
        "z;y;x\n12;1.234;987\n4;345;1.001\n",  # and without any
        "z\ty\tx\n12\t1,234\t987\n4\t345\t1,001\n",  # American
        "z;y;x\n12;1.234,5;987\n",
        'z,y,x\n12,"1,234",987\n',
        "z;y;x\n12;1\u202f234;987\n",
        "z;y;x\n12;1'234;987\n",
    ],
)
def test_separated_thousands_are_refused(tmp_path, text):
    with pytest.raises(CanvasError, match=r"separated thousands|separator of thousands"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "z;y;x\n1;12,345;7,125\n2;45,500;0,250\n",  # three decimals throughout, as ImageJ writes them
        "z;y;x\n1,0;12,345;7,125\n2,0;45,5;0,25\n",
        "z\ty\tx\n1\t12.345\t7.125\n2\t45.500\t0.250\n",
    ],
)
def test_three_decimals_are_decimals(tmp_path, text, caplog):
    np.testing.assert_array_equal(read(tmp_path, text).zyx, [[1, 12.345, 7.125], [2, 45.5, 0.25]])
    assert "thousands" not in caplog.text


def test_what_nothing_tells_is_said(tmp_path, caplog):
    assert read(tmp_path, "z;y;x\n1;12,345;7\n2;45,500;8\n").zyx[0, 1] == 12.345
    assert "the comma of 12,345 in y is read as a decimal point; if it separates thousands" in caplog.text


def test_blanks_stand_beside_decimal_commas(tmp_path):
    points = read(tmp_path, '"";"z";"y";"x";"score"\n"1";1,5;2;3;0,5\n"2";4;5;6;NA\n')  # R's write.csv2
    np.testing.assert_array_equal(points.zyx, [[1.5, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(points.columns["score"], [0.5, np.nan])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", '"z" "y" "x"\n"1" 1 2 3\n"2" 4 5 6\n'),
        ("a.csv", '"z","y","x"\n"1",1,2,3\n'),
        ("a.tsv", "z\ty\tx\n1\t1\t2\t3\n"),
        ("b.txt", "   z  y  x\n0  1  2  3\n"),
    ],
)
def test_row_names_without_a_column_name_are_said_to_be_these(tmp_path, name, text):
    with pytest.raises(CanvasError, match="row 1 has 4 values; the column row names 3: the first may be R's"):
        read(tmp_path, text, name)


@pytest.mark.parametrize("text", ["1,2,3\n4,5,6\n", "1.5,2.5,3.5\n", "1.0e+00 2.0e+00 3.0e+00\n", "7,7,2\n"])
def test_a_table_without_names_is_said_to_have_none(tmp_path, text):
    with pytest.raises(CanvasError, match="numbers where the names of columns are expected"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("z;y;x\n1.234;2.345;3.456\n4.567;5.678;6.789\n", True),
        ("z;y;x\n1.234;2.345;3.45\n4.567;5.67;6.7\n", True),
        ("z;y;x\n1.234;2.3;3.4\n0.567;5.6;6.7\n", False),
        ("z,y,x\n1.234,2.345,3.456\n4.567,5.678,6.789\n", False),
    ],
)
def test_three_digits_after_every_point_are_warned_of(tmp_path, caplog, text, warned):
    """German Excel writes 1.234 for 1234, with semicolons; nothing else tells it from a decimal."""
    (tmp_path / "a.csv").write_text(text)
    assert Points.read(tmp_path / "a.csv").zyx[0, 0] == 1.234
    assert ("is read as a decimal point; if it separates thousands" in caplog.text) == warned
