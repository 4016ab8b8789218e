"""`audit`: a table is drawn, answered, and read back."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume


@pytest.fixture
def cells(tmp_path):
    """A volume, and forty detections of which the better half are cells."""
    with Volume.create(tmp_path / "a.zarr", (16, 64, 64), voxel_um=(4.0, 2.0, 2.0)) as writer:
        writer.write((0, 0, 0), np.ones((16, 64, 64), np.uint16))
    random = np.random.default_rng(0)
    zyx = random.integers(0, 60, (40, 3)) * (0.25, 1, 1)
    Points(zyx, {"score": np.linspace(0, 1, 40)}).write(tmp_path / "cells.csv")
    return tmp_path


def answer(cells, by):
    table = Points.read(cells / "audit.csv")
    table.columns["answer"] = np.array([by(kind, z) for kind, z in zip(table.columns["kind"], table.zyx)])  # noqa: B905
    table.write(cells / "audit.csv")


def test_from_a_sample_to_a_count(cells, result, run):
    words = ["audit", cells / "a.zarr", cells / "cells.csv"]
    drawn = result(*words, "--out", cells / "audit.csv", "--sample", 500, "--boxes", 500, "--everywhere")
    assert (drawn["detections"], drawn["boxes"]) == (40, 1)
    good = {tuple(row) for row in Points.read(cells / "cells.csv").zyx[20:].tolist()}
    answer(cells, lambda kind, zyx: 3 if kind == "box" else int(tuple(zyx.tolist()) in good))
    found = result(*words, "--labels", cells / "audit.csv")
    assert (found["precision"], found["cells"], found["missed"]) == (0.5, 23, 3)
    assert found["cells_90"] == [23, 23]
    assert found["recall"] == pytest.approx(20 / 23)
    code, out, _ = run(*words, "--labels", cells / "audit.csv")
    assert code == 0
    assert "precision                  0.500   0.500 to 0.500" in out


def test_a_table_with_answers_is_not_drawn_over(cells, result, refusal):
    words = ["audit", cells / "a.zarr", cells / "cells.csv", "--out", cells / "audit.csv"]
    result(*words)
    assert "is there already, perhaps with answers" in refusal(*words)
    assert result(*words, "--overwrite")["detections"] == 40
    assert "is a .csv" in refusal(*words[:-1], cells / "audit.parquet")


def test_it_is_drawn_or_answered(cells, refusal):
    words = ["audit", cells / "a.zarr", cells / "cells.csv"]
    assert "give --out AUDIT.csv" in refusal(*words)
    assert "with --out, then give it" in refusal(*words, "--out", cells / "x.csv", "--page")
    assert "go with --out" in refusal(*words, "--labels", cells / "audit.csv", "--sample", 3)
