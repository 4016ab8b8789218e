"""Tables of results in the format that their suffix names, read back as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.tables import text_rows, write_table
from canvas_fm.errors import CanvasError

NAMES = ["outer, layer", "inner"]
TABLE = {"id": np.array([3, 4]), "name": np.array(NAMES), "count": np.array([1.5, np.nan])}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".xlsx"])
def test_each_suffix_is_its_own_format(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    if suffix == ".xlsx":
        pytest.importorskip("openpyxl")
    path = tmp_path / f"regions{suffix}"
    write_table(path, TABLE, {})
    magic = {".parquet": b"PAR1", ".xlsx": b"PK"}.get(suffix, b"id")
    assert path.read_bytes().startswith(magic)
    rows = text_rows(path)
    assert [row["name"] for row in rows] == NAMES
    assert [row["id"] for row in rows] == ["3", "4"]
    assert rows[0]["count"] == "1.5"
    assert rows[1]["count"] in ("", "nan")


def test_a_table_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CanvasError, match="there is no file"):
        text_rows(tmp_path / "x.csv")
