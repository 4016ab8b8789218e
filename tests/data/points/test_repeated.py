"""Repeated positions in a table of cells: a warning from every verb that counts them."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.analysis.marker_cells import read_population, read_um
from canvas_fm.data.points.points import Points
from canvas_fm.data.points.repeated import repeated_rows


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
