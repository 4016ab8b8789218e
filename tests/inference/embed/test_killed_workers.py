"""Two of four workers are killed in the middle of an embedding: no vector is lost or of another point."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.embed.store import resumable_embeddings
from tests.support.killed_workers import two_of_four_killed


@pytest.mark.slow
def test_two_of_four_workers_are_killed_and_all_vectors_are_those_of_one(
    encoder, volume, tmp_path, monkeypatch
):
    monkeypatch.setattr(resumable_embeddings, "BLOCK", 64)
    zyx = np.random.default_rng(0).random((64 * 40, 3)) * (np.array(volume.shape_zyx) - 1)
    points = Points(zyx)
    alone = embed_to_store(encoder, volume, points, tmp_path / "a.emb.zarr", device="cpu")
    state = tmp_path / "b.emb.zarr.unfinished" / "mark.json"

    def done() -> int:
        try:
            return len(json.loads(state.read_text())["state"]["done"])
        except (OSError, ValueError):  # not written yet
            return 0

    with two_of_four_killed(done, each=8) as scheduler:
        where = {"scheduler": scheduler, "device": "cpu"}
        together = embed_to_store(encoder, volume, points, tmp_path / "b.emb.zarr", **where)
    np.testing.assert_array_equal(together.points.zyx, alone.points.zyx)
    np.testing.assert_array_equal(together.vectors, alone.vectors)
