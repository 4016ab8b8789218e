"""An audit by clicks: boxes count the missed cells inside them, and the table is filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import BadInput
from canvas_fm.heads.review.audit.answers import audit_of
from canvas_fm.heads.review.audit.audit_flags import AuditOptions
from canvas_fm.heads.review.audit.sample import draw_audit
from canvas_fm.heads.review.audit.session import AuditSession

SHAPE, VOXEL_UM = (40, 100, 100), (5.0, 2.0, 2.0)


@pytest.fixture
def cells() -> Points:
    zyx = np.random.default_rng(0).integers(0, 40, (30, 3)) * (1, 2.4, 2.4)
    return Points(zyx, {"score": np.linspace(0, 1, 30)})


def test_rows_in_their_order_boxes_by_their_missed_cells(cells: Points, tmp_path: Path):
    drawn = draw_audit(cells, SHAPE, VOXEL_UM, AuditOptions.of(sample=10, boxes=3))
    drawn.write(tmp_path / "audit.csv")
    session = AuditSession(Points.read(tmp_path / "audit.csv"), cells, tmp_path / "audit.csv")
    assert session.queue("auditor", 20) == list(range(len(drawn)))
    assert session.box_of(0) is None
    assert len(session.detections_zyx) == 30
    for row in range(10):
        session.answer("auditor", f"r{row}", [row], row % 2)
    box = session.box_of(11)
    inside = [box[0], box[1], box[2]]
    session.add_missed("auditor", "m1", inside)
    session.add_missed("auditor", "m2", [box[3], box[1], box[2]])  # the end is excluded
    session.answer("auditor", "b", [11], 1)
    assert "precision 0.50" in session.progress("auditor")["stop"]
    session.close()
    table = Points.read(tmp_path / "audit.csv")
    answers = np.asarray(table.columns["answer"], float)
    assert answers[:10].tolist() == [0, 1] * 5
    assert answers[11] == 1
    assert np.isnan(answers[[10, *range(12, len(drawn))]]).all()
    assert audit_of(table, cells).answered == 10
    again = AuditSession(table, cells, tmp_path / "audit.csv")
    assert again.queue("auditor", 20) == [10, *range(12, len(drawn))]
    again.close()


def test_a_table_of_other_cells_is_refused_before_the_page_opens(cells: Points, tmp_path: Path):
    drawn = draw_audit(cells, SHAPE, VOXEL_UM, AuditOptions.of(sample=10, boxes=3))
    with pytest.raises(BadInput, match="not among these cells"):
        AuditSession(drawn, Points(cells.zyx + 1), tmp_path / "audit.csv")
