"""Labels mean the same however they are written: in truths, candidates and cellfinder's types."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from canvas_fm import Points
from canvas_fm.data.points.label_values import as_labels
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.plausibility_checks import cells_of


@pytest.mark.parametrize(
    "values",
    [
        ["1", "0", "", "1"],
        ["TRUE", "FALSE", "NA", "True"],
        ["1.0", "0.0", "NaN", "1.0"],
        ["1", "0", "-1", "1"],
        ["true", "false", "", "true"],
    ],
)
def test_every_spelling_of_cell_none_and_unlabelled(tmp_path, values):
    rows = "".join(f"{z},2,3,{value}\n" for z, value in enumerate(values))
    (tmp_path / "a.csv").write_text("z,y,x,label\n" + rows)
    points = Points.read(tmp_path / "a.csv")
    np.testing.assert_array_equal(as_labels(points.columns["label"]), [1, 0, -1, 1])
    assert cells_of(points, "truth")[0].zyx[:, 0].tolist() == [0, 3]
    points.write(tmp_path / "a.xml")
    written = Points.read(tmp_path / "a.xml")
    assert sorted(zip(written.zyx[:, 0].tolist(), written.columns["type"].tolist(), strict=True)) == [
        (0, 2), (1, 1), (3, 2)
    ]  # fmt: skip


@pytest.mark.parametrize("values", [np.array(["CA1", "DG"]), np.array([7, 8]), np.array([0.5, 1.0])])
def test_names_numbers_of_objects_and_fractions_are_no_labels(tmp_path, values, caplog):
    assert as_labels(values) is None
    with caplog.at_level(logging.WARNING):
        Points(np.zeros((2, 3)), {"label": values}).write(tmp_path / "a.xml")
    assert "cannot hold the columns label" in caplog.text


def test_a_score_that_is_text_is_shown(tmp_path):
    from canvas_fm.evaluation.detection.plausibility_checks import scores_of

    with pytest.raises(CanvasError, match="holds text, such as '97%'; expected numbers"):
        scores_of(Points(np.zeros((2, 3)), {"p_cell": np.array(["1", "97%"])}), None, needed=False)
