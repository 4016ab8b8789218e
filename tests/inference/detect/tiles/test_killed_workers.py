"""Two of four workers are killed in the middle of a detection: no cell is lost, none is there twice."""

from __future__ import annotations

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.inference.detect.detect import detector_job
from canvas_fm.inference.detect.tiles.tiled_detection import run
from tests.support.killed_workers import two_of_four_killed


@pytest.mark.slow
@pytest.mark.parametrize(("brain", "tile_zyx"), [("phantom", (11, 16, 16)), ("sample:cfos", (32, 32, 32))])
def test_two_of_four_workers_are_killed_and_all_rows_are_those_of_one(
    brain, tile_zyx, detector, volume, tmp_path
):
    if brain != "phantom":
        detector, volume = cf.load("detector-cfos"), cf.Volume.open(brain)
    job = detector_job(detector, volume, tile_zyx=tile_zyx, device="cpu")
    assert len(job.tiles) > 20
    alone = run(job)

    def done() -> int:
        return len(list(tmp_path.glob("cells.csv.unfinished/*.part")))

    with two_of_four_killed(done, each=4) as scheduler:
        together = run(job, tmp_path / "cells.csv", scheduler=scheduler)
    np.testing.assert_array_equal(together.zyx, alone.zyx)
    np.testing.assert_array_equal(together.columns["score"], alone.columns["score"])
