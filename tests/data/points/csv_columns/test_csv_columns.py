"""Fast reading and writing of number columns against Python's own `float`, `repr` and `csv`."""

from __future__ import annotations

import csv
import io
import time
import tracemalloc

import numpy as np
import pytest

from canvas_fm.data.points.csv_columns import columns as csv_columns
from canvas_fm.data.points.csv_columns.columns import _typed
from canvas_fm.data.points.csv_columns.format import format_rows
from canvas_fm.data.points.csv_columns.parse import parse_block
from canvas_fm.data.points.points import Points
from canvas_fm.data.points.tables import _plain, read_csv, write_csv
from canvas_fm.errors import CanvasError

N = 3000
RANDOM, OTHER = np.random.default_rng(0), np.random.default_rng(1)
TEXTS = {
    "17 digits": list(map(repr, (RANDOM.random(N) * 10.0 ** RANDOM.integers(-3, 4, N)).tolist())),
    "below one": list(map(repr, (OTHER.random(N) * 10.0 ** OTHER.integers(-2, 1, N)).tolist())),
    "signed": list(map(repr, RANDOM.normal(size=N).tolist())),
    "integers": [str(value) for value in RANDOM.integers(-(10**6), 10**6, N)],
    "long integers": [str(value) for value in RANDOM.integers(-(10**17), 10**17, N)],
    "float32": [str(value) for value in RANDOM.random(N).astype(np.float32)],
    "three decimals": [f"{value:.3f}" for value in RANDOM.normal(size=N) * 1000],
    "25 decimals": [f"{value:.25f}" for value in RANDOM.random(N)],
    "a few exponents": [
        f"{value:.3e}" if i % 100 == 0 else "0.5" for i, value in enumerate(RANDOM.random(N))
    ],
    "a few blanks": ["" if i % 100 == 7 else "12" for i in range(N)],
    "leading zeros": ["007", "011"] * 10,
    "minus zero": ["-0", "1"],
    "two points": ["1.5", "1.2.3", *(["2.5"] * 200)],
    "inner minus": ["1-5", *(["2.5"] * 200)],
    "large and blank": ["9007199254740993", *(["1.5"] * 200)],
    "points alone": [".5", "5.", "-.5", "0.0", "-0.0"],
    "a point without digits": [".", *(["1.5"] * 200)],
    "a tie after 64 bits": ["9007199254740993.0", "4503599627370497.5", "0.30000000000000004"],
    "underscore": ["1_000", *(["1.5"] * 200)],
    "words": ["CA1", "DG, no", "ä"],
}


@pytest.mark.parametrize("kind", TEXTS)
def test_fields_are_typed_as_by_python(kind):
    texts = [text.replace(",", "") for text in TEXTS[kind]]
    text = "".join(f"{one},7\n" for one in texts)
    parsed = parse_block(text.encode(), b",", 2, _typed)
    assert parsed is not None
    wanted = _typed(texts)
    assert parsed[0].dtype.kind == wanted.dtype.kind
    np.testing.assert_array_equal(parsed[0], wanted)
    if wanted.dtype.kind == "f":
        assert np.array_equal(np.signbit(parsed[0]), np.signbit(wanted))
    assert parsed[1].tolist() == [7] * len(texts)


def test_floats_below_one_are_not_parsed_one_by_one():
    text = "".join(f"{one}\n" for one in TEXTS["below one"])
    seen: list[object] = []
    assert parse_block(text.encode(), b",", 1, lambda texts: seen.append(texts) or _typed(texts)) is not None
    assert not seen


@pytest.mark.parametrize(
    "text", ['1,"2"\n', "1,2\r\n", "1,2\n\n3,4\n", "1,2,3\n4\n", " 1,2\n", "1, 2\n", ",\n1,2\n", "1\n2,3,4\n"]
)
def test_rows_that_need_a_csv_reader_are_left_to_it(text):
    assert parse_block(text.encode(), b",", 2, _typed) is None


VALUES = {
    "float32": RANDOM.random(N).astype(np.float32),
    "float32 over decades": np.exp(RANDOM.normal(size=N) * 4).astype(np.float32),
    "float32, odd": np.array([np.inf, -np.inf, np.nan, 0, -0.0, 1e-45, 3e38, 1e-4, 9.9e-5] * 9, np.float32),
    "whole": RANDOM.integers(-5000, 5000, N).astype(float),
    "three decimals": np.round(RANDOM.normal(size=N) * 1000, 3),
    "17 digits": RANDOM.random(N),
    "17 digits over decades": np.append(
        OTHER.normal(size=N - 4) * 10.0 ** OTHER.integers(-7, 20, N - 4), [np.nan, np.inf, -np.inf, -0.0]
    ),
    "a few NaN": np.where(RANDOM.random(N) < 0.01, np.nan, RANDOM.integers(0, 9, N)),
    "integers": RANDOM.integers(-(2**62), 2**62, N),
    "unsigned": RANDOM.integers(0, 2**64 - 1, N, dtype=np.uint64),
    "booleans": RANDOM.random(N) > 0.5,
    "words": RANDOM.choice(np.array(["CA1", "", "ä b"]), N),
    "quoted": RANDOM.choice(np.array(["CA1", "a, b", 'c "d"', "two\nlines"]), N),
}


@pytest.mark.parametrize("kind", VALUES)
def test_rows_are_those_of_pythons_csv_writer(kind):
    columns = [VALUES[kind], VALUES[kind][::-1]]
    wanted = io.StringIO()
    csv.writer(wanted, lineterminator="\n").writerows(
        zip(*(_plain(c, blank=place > 0) for place, c in enumerate(columns)), strict=True)
    )
    text = format_rows(columns, b",")
    if text is None:
        assert kind in ("unsigned", "quoted")
    else:
        assert text.decode() == wanted.getvalue()


def test_a_table_comes_back_in_many_blocks_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_columns, "_CHARACTERS", 500)
    table = {name.replace(",", ""): values for name, values in VALUES.items() if len(values) == N}
    write_csv(tmp_path / "t.csv", table, {})
    back = read_csv(tmp_path / "t.csv")[0]
    for name, values in table.items():
        np.testing.assert_array_equal(back[name].astype(values.dtype), values, err_msg=name)


def test_nan_is_a_blank_that_comes_back_and_no_row_is_empty(tmp_path):
    nan, half = np.full(3, np.nan), np.array([np.nan, 0.5, np.nan], np.float32)
    table = {"first": nan, "none": nan, "half": half, "name": np.array(["a, b", "", ""])}
    for names in (list(table), list(table)[:3]):  # one text that is quoted, and none
        write_csv(tmp_path / "t.csv", {name: table[name] for name in names}, {})
        lines = (tmp_path / "t.csv").read_text().splitlines()
        assert [line.split(",")[:3] for line in lines[1:]] == [
            ["nan", "", ""],
            ["nan", "", "0.5"],
            ["nan", "", ""],
        ]
        back = read_csv(tmp_path / "t.csv")[0]
        for name in names[:3]:
            np.testing.assert_array_equal(back[name], table[name], err_msg=name)


def test_a_row_of_another_length_is_named_in_a_later_block(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_columns, "_CHARACTERS", 100)
    rows = ["z,y,x,s", *(["1.0,2.0,3.0,0.5"] * 90), "1.0,2.0,3.0"]
    (tmp_path / "p.csv").write_text("\n".join(rows))
    with pytest.raises(Exception, match="row 91 has 3 values; the column row names 4"):
        Points.read(tmp_path / "p.csv")


def test_long_texts_take_memory_by_their_characters_alone(tmp_path):
    """An array of texts has the width of the longest: one of 100 kB among a million rows is 400 GB."""
    path = tmp_path / "notes.csv"
    path.write_text("z,y,x,note\n1,2,3," + "a" * 90_000 + "\n", encoding="utf-8")
    points = Points.read(path)
    tracemalloc.start()
    points.write(tmp_path / "again.csv")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert Points.read(tmp_path / "again.csv").columns["note"].tolist() == ["a" * 90_000]
    path.write_text("z,y,x,note\n1,2,3," + "a" * 100_001 + "\n", encoding="utf-8")
    with pytest.raises(CanvasError, match=r"notes.csv: it holds a text of 100,001 characters; 100,000 are"):
        Points.read(path)
    for long_row in (0, 3_000):  # in the first block, and in one of its own
        rows = ["1,2,3,b\n"] * 6_000 + ["1,2,3,c c\n"] * 100_000
        rows[long_row] = "1,2,3," + "a" * 90_000 + "\n"
        path.write_text("z,y,x,note\n" + "".join(rows), encoding="utf-8")
        with pytest.raises(CanvasError, match=r"notes.csv: a column of .* texts, the longest of 90,000"):
            Points.read(path)


def test_a_file_of_notes_alone_is_given_up(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("# a: b\n" * 99_999 + "z,y,x\n1,2,3\n", encoding="utf-8")
    assert len(Points.read(path)) == 1
    path.write_text("# a: b\n" * 100_000 + "z,y,x\n1,2,3\n", encoding="utf-8")
    with pytest.raises(CanvasError, match="names no columns in its first 100,000 lines"):
        Points.read(path)


def test_many_columns_take_time_by_their_number(tmp_path):
    """And not by its square, of which 100,000 names would take a minute."""
    path = tmp_path / "wide.csv"
    names = ",".join(f"c{n}" for n in range(99_990))
    path.write_text(f"z,y,x,{names}\n1,2,3\n", encoding="utf-8")
    began = time.process_time()
    with pytest.raises(CanvasError, match="row 1 has 3 values; the column row names 99993"):
        Points.read(path)
    path.write_text(f"z,y,x,{names},{names.replace('c', 'd')}\n1,2,3\n", encoding="utf-8")
    with pytest.raises(CanvasError, match="has 199,983 columns; 100,000 are the most"):
        Points.read(path)
    assert time.process_time() - began < 10
