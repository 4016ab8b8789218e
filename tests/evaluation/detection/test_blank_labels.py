"""A blank, NaN or NA in the column `label` of a truth means unlabelled."""

from __future__ import annotations

import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.evaluation.detection.plausibility_checks import cells_of


@pytest.mark.parametrize("blank", ["", "NaN", "NA"])
def test_unlabelled_rows_of_a_truth_are_left_out(tmp_path, blank):
    (tmp_path / "truth.csv").write_text(f"z,y,x,label\n1,2,3,1\n4,5,6,{blank}\n7,8,9,0\n")
    cells, notes = cells_of(Points.read(tmp_path / "truth.csv"), "truth")
    assert cells.zyx.tolist() == [[1, 2, 3]]
    assert "2 of 3 rows of the truth" in notes[0]
