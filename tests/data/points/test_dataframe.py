"""Points from and as a pandas DataFrame."""

import numpy as np
import pandas as pd
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError


def test_there_and_back_nothing_is_lost():
    points = Points(
        np.array([[1.5, 2, 3], [4, 5, 6]]),
        {"score": np.array([0.25, 0.5]), "id": np.array([7, 2**60]), "kind": np.array(["a", "b"])},
        {"volume": "brain"},
    )
    frame = points.to_dataframe()
    assert list(frame.columns) == ["z", "y", "x", "score", "id", "kind"]
    again = Points.from_dataframe(frame)
    assert np.array_equal(again.zyx, points.zyx)
    assert again.meta == points.meta
    for name, values in points.columns.items():
        assert np.array_equal(again.columns[name], values)
        assert again.columns[name].dtype.kind == values.dtype.kind


def test_columns_are_found_by_name_and_um_become_voxels():
    frame = pd.DataFrame(
        {"X_um": [3.6], "n": pd.array([None], dtype="Int64"), "Z_um": [8.0], "y_um": [1.8], "kind": [None]}
    )
    points = Points.from_dataframe(frame, voxel_um=(4.0, 1.8, 1.8))
    np.testing.assert_allclose(points.zyx, [[2, 1, 2]])
    assert np.isnan(points.columns["n"][0])
    assert points.columns["kind"].tolist() == [""]
    with pytest.raises(CanvasError, match="are in µm; give voxel_um"):
        Points.from_dataframe(frame)


def test_a_table_without_positions_is_refused():
    with pytest.raises(CanvasError, match="no column z, x; its columns are a, y: rename"):
        Points.from_dataframe(pd.DataFrame({"a": [1], "y": [2]}))
