"""Points: what is written comes back, what is wrong in a file is said with its row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from canvas_fm.analysis.marker_cells import read_population, read_um
from canvas_fm.data.points.points import Points, check_inside, inside, repeated_rows
from canvas_fm.errors import CanvasError, MissingExtra


def some_points(n: int = 50) -> Points:
    rng = np.random.default_rng(0)
    return Points(
        rng.uniform(-10, 5000, (n, 3)),
        {
            "score": rng.random(n),
            "label": rng.integers(-1, 2, n),
            "name": np.array([f"cell, no. {i}" for i in range(n)]),
        },
        {"volume": "brain: one", "model": "ab12"},
    )


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_is_written_is_read_back_exactly(tmp_path: Path, suffix: str) -> None:
    points = some_points()
    points.write(tmp_path / f"p{suffix}")
    back = Points.read(tmp_path / f"p{suffix}")
    np.testing.assert_array_equal(back.zyx, points.zyx)
    assert list(back.columns) == ["score", "label", "name"]
    for name, values in points.columns.items():
        assert back.columns[name].dtype.kind == values.dtype.kind
        np.testing.assert_array_equal(back.columns[name], values)
    assert back.meta == points.meta


@pytest.mark.parametrize(
    ("rows", "numbers"),
    [
        (np.arange(50) % 20 == 0, [0, 20, 40]),
        ([4, 1, -1], [4, 1, 49]),
        (slice(3, 8, 2), [3, 5, 7]),
        ([], []),
    ],
    ids=["mask", "rows", "slice", "none"],
)
def test_columns_and_meta_follow_the_rows_that_are_taken(rows: Any, numbers: list[int]) -> None:
    points = some_points()
    taken = points[rows]
    assert taken.zyx.tolist() == [points.zyx[n].tolist() for n in numbers]
    for name, values in points.columns.items():
        assert taken.columns[name].tolist() == [values[n] for n in numbers]
        assert taken.columns[name].dtype == values.dtype
    assert taken.meta == points.meta
    taken.meta["volume"] = "another"
    assert points.meta["volume"] == "brain: one"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (3, "give a mask, a slice or an array"),
        ("score", "give a mask, a slice or an array"),
        ([0.5], "give a mask, a slice or an array"),
        ([[1], [2, 3]], "give a mask, a slice or an array"),
        (np.ones(49, bool), "a mask of 49 rows for 50 points"),
        ([0, 50], "rows 0 to 50 of 50 points"),
        ([-51], "rows -51 to -51 of 50 points"),
    ],
)
def test_rows_that_points_do_not_have_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(CanvasError, match=message):
        some_points()[rows]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_no_rows_are_zero_points_unless_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"none{suffix}"
    Points(np.empty((0, 3)), {"score": np.empty(0)}).write(path)
    back = Points.read(path)
    assert len(back) == 0
    assert back.zyx.shape == (0, 3)
    assert list(back.columns) == ["score"]
    with pytest.raises(CanvasError, match="holds no points"):
        Points.read(path, allow_empty=False)


@pytest.mark.parametrize(
    "text",
    [
        "z,y,x,id\n1,2,3,007\n4,5,6.5,011\n",
        "\ufeffz;y;x;id\r\n1;2;3;007\r\n4;5;6.5;011\r\n",
        "# by: hand\n\n#note\nid\tX\tZ\tY\n007\t3\t1\t2\n\n011\t6.5\t4\t5\n",
        '"Z" , "Y", "X", "id"\n1, 2, 3, 007\n4, 5, 6.5, 011\n',
    ],
)
def test_dialects_give_the_same_points(tmp_path: Path, text: str) -> None:
    points = Points.read(write(tmp_path / "p.csv", text))
    np.testing.assert_array_equal(points.zyx, [[1, 2, 3], [4, 5, 6.5]])
    assert points.columns["id"].tolist() == ["007", "011"]
    assert points.meta == ({"by": "hand"} if "hand" in text else {})


def test_columns_get_the_narrowest_type_that_loses_nothing(tmp_path: Path) -> None:
    text = "z,y,x,count,share,gap,word\n1,2,3,4,1,,a\n1,2,3,-5,0.5,2,1\n"
    columns = Points.read(write(tmp_path / "p.csv", text)).columns
    assert [columns[name].dtype.kind for name in columns] == ["i", "f", "f", "U"]
    assert np.isnan(columns["gap"][0])
    assert columns["word"].tolist() == ["a", "1"]


def test_text_late_in_a_column_keeps_its_early_numbers_as_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("canvas_fm.data.points.csv_columns.columns._BLOCK", 2)
    monkeypatch.setattr("canvas_fm.data.points.csv_columns.columns._CHARACTERS", 2)
    text = "z,y,x,tag,n\n" + "".join(
        f"{i},0,0,{tag},{i}\n" for i, tag in enumerate(["1.50", "2", "c", "1e3"])
    )
    points = Points.read(write(tmp_path / "p.csv", text))
    assert points.columns["tag"].tolist() == ["1.50", "2", "c", "1e3"]
    assert points.columns["n"].dtype.kind == "i"
    assert points.zyx[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("plane,row,column\n1,2,3\n", "no column z, y, x; found plane, row, column"),
        ("z,y\n1,2\n", "no column x; found z, y"),
        ("", "is empty; give a table with columns z, y, x"),
        ("z,y,x\n1,2,3\n1,nan,3\n", "row 2: y is nan"),
        ("z,y,x\n1,2,3\n1,2,3\n1,2,inf\n", "row 3: x is inf"),
        ("z,y,x\n1,2,3\n1,,3\n", "row 2: y is nan"),
        ("Z,Y,X\n1,2,3\n4,abc,6\n", "row 2: Y is 'abc', expected a number"),
        ("z,y,x\n1,2,3\n4,5\n", "row 2 has 2 values; the column row names 3"),
        ("z,y,x,Y\n1,2,3,4\n", "has the column y more than once"),
        ("z;y;x\n1,5,5;2;3\n", "row 1: z is '1,5,5', expected a number"),
    ],
)
def test_a_wrong_file_is_refused_with_its_row(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(CanvasError) as problem:
        Points.read(write(tmp_path / "p.csv", text))
    assert sentence in str(problem.value)
    assert "p.csv" in str(problem.value)


def test_files_that_are_no_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CanvasError, match="no points file at"):
        Points.read(tmp_path / "absent.csv")
    with pytest.raises(CanvasError, match=r"'\.abc'.*\.csv"):
        Points.read(write(tmp_path / "p.abc", "x"))
    with pytest.raises(CanvasError, match="is not UTF-8"):
        Points.read(write(tmp_path / "p.csv", "z,y,x,ä\n1,2,3,ö\n", "latin-1"))
    with pytest.raises(CanvasError, match="cannot be read as Parquet"):
        Points.read(write(tmp_path / "p.parquet", "no parquet"))
    with pytest.raises(CanvasError, match=r"'\.npz'.*\.csv"):
        some_points().write(tmp_path / "p.npz")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"canvas-fm\[parquet\]"):
        some_points().write(tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()


def test_points_of_another_shape_are_refused() -> None:
    with pytest.raises(CanvasError, match=r"shape \(5, 2\); expected \(n, 3\)"):
        Points(np.zeros((5, 2)))
    with pytest.raises(CanvasError, match=r"row 2 .* is not finite"):
        Points(np.array([[0, 0, 0], [0, np.nan, 0.0]]))
    with pytest.raises(CanvasError, match=r"column 'a' of points has shape \(2,\); expected \(1,\)"):
        Points(np.zeros((1, 3)), {"a": np.zeros(2)})


def test_inside_is_the_voxels_extent() -> None:
    zyx = np.array([[-0.5, 0, 0], [-0.51, 0, 0], [9.49, 19, 29], [9.5, 0, 0], [0, 0, 29.5]])
    assert inside(zyx, (10, 20, 30)).tolist() == [True, False, True, False, False]
    assert Points(zyx[:1]).inside((1, 1, 1)).tolist() == [True]


def test_points_outside_are_counted_and_the_first_is_named() -> None:
    zyx = np.full((100, 3), 5.0)
    check_inside(zyx, (10, 10, 10))
    zyx[[6, 40, 41]] = (1, 2, 30.25)
    with pytest.raises(CanvasError) as problem:
        Points(zyx).check_inside((10, 10, 10))
    count, first, volume = (
        str(problem.value).split(";")[0].split(", first")[0],
        *str(problem.value).split("; "),
    )
    assert count == "points outside the volume: 3 of 100"
    assert first.endswith("first at row 7 (z, y, x) = (1, 2, 30.25)")
    assert volume.startswith("volume is (10, 10, 10)")


def test_many_rows_are_read_whole_and_in_order(tmp_path: Path) -> None:
    rows = "".join(f"{i % 977},{i % 1013}.5,{i % 911},0.25\n" for i in range(100_000))
    points = Points.read(write(tmp_path / "p.csv", "z,y,x,score\n" + rows))
    index = np.arange(100_000)
    np.testing.assert_array_equal(
        points.zyx, np.stack([index % 977, index % 1013 + 0.5, index % 911], axis=1)
    )
    assert (points.columns["score"] == 0.25).all()


def test_rows_that_repeat_a_position_are_counted():
    zyx = np.random.default_rng(0).random((50, 3)).round(1)
    assert repeated_rows(zyx) == 50 - len(np.unique(zyx, axis=0))
    assert repeated_rows(np.array([[0.0, 1, 2], [-0.0, 1, 2], [1, 0, 2], [2, 1, 0]])) == 1
    assert repeated_rows(np.zeros((0, 3))) == 0


@pytest.mark.parametrize("read", [read_um, read_population])
def test_a_table_that_was_pasted_twice_is_warned_of(read, tmp_path, caplog):
    zyx = np.arange(12.0).reshape(4, 3)
    Points(np.concatenate([zyx, zyx[:3]])).write(tmp_path / "a.csv")
    read(tmp_path / "a.csv", voxel_um=(1, 1, 1))
    assert "a.csv: 3 of 7 rows repeat the position of another" in caplog.text
