"""Two of four workers are killed in the middle of an embedding: no vector is lost or of another point."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.embed.store import resumable

distributed = pytest.importorskip("distributed")


@pytest.mark.slow
def test_two_of_four_workers_are_killed_and_all_vectors_are_those_of_one(
    encoder, volume, tmp_path, monkeypatch
):
    monkeypatch.setattr(resumable, "BLOCK", 64)
    zyx = np.random.default_rng(0).random((64 * 40, 3)) * (np.array(volume.shape_zyx) - 1)
    points = Points(zyx)
    alone = embed_to_store(encoder, volume, points, tmp_path / "a.emb.zarr", device="cpu")
    killed: set[int] = set()
    state = tmp_path / "b.emb.zarr.unfinished" / "mark.json"

    def kill() -> None:
        """A worker each time that eight more blocks are done; a nanny starts another one in its place."""
        while len(killed) < 2:
            time.sleep(0.005)
            try:
                done = len(json.loads(state.read_text())["state"]["done"])
            except (OSError, ValueError):
                continue
            if done >= 8 * (len(killed) + 1):
                pid = list(cluster.workers.values())[len(killed)].pid
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)

    with distributed.LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster:
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        where = {"scheduler": cluster.scheduler_address, "device": "cpu"}
        together = embed_to_store(encoder, volume, points, tmp_path / "b.emb.zarr", **where)
        killer.join(5)
    assert len(killed) == 2
    np.testing.assert_array_equal(together.points.zyx, alone.points.zyx)
    np.testing.assert_array_equal(together.vectors, alone.vectors)
