"""Two of four workers are killed in the middle of a detection: no cell is lost, none is there twice."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.inference.detect.detect import detector_job
from canvas_fm.inference.detect.tiles.detection_job import run

distributed = pytest.importorskip("distributed")


@pytest.mark.slow
@pytest.mark.parametrize(("brain", "tile_zyx"), [("phantom", (11, 16, 16)), ("sample:cfos", (32, 32, 32))])
def test_two_of_four_workers_are_killed_and_all_rows_are_those_of_one(
    brain, tile_zyx, detector, volume, tmp_path
):
    if brain != "phantom":
        detector, volume = cf.load("detector-cfos"), cf.Volume.open(brain)
    job = detector_job(detector, volume, tile_zyx=tile_zyx, device="cpu")
    assert len(job.tiles) > 20
    alone, killed = run(job), set()

    def kill() -> None:
        """A worker each time that four more tiles are done; a nanny starts another one in its place."""
        while len(killed) < 2:
            time.sleep(0.005)
            if len(list(tmp_path.glob("cells.csv.unfinished/*.part"))) >= 4 * (len(killed) + 1):
                pid = list(cluster.workers.values())[len(killed)].pid
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)

    with distributed.LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster:
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        together = run(job, tmp_path / "cells.csv", scheduler=cluster.scheduler_address)
        killer.join(5)
    assert len(killed) == 2
    np.testing.assert_array_equal(together.zyx, alone.zyx)
    np.testing.assert_array_equal(together.columns["score"], alone.columns["score"])
