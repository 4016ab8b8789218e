"""A job of a real service outlives kills of the whole service, and its client waits through them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

import canvas_fm as cf
from canvas_fm.inference.embed.store.embedding_store import Embeddings
from canvas_fm.models.load_model import Encoder
from serving.client import Client
from tests.serving.load.traffic import quiet_port

SHAPE = (24, 60, 50)  # of the fixtures


@pytest.mark.slow
def test_a_job_outlives_kills_of_the_service(
    serve_command: Callable, model: Path, encoder: Encoder, volume_path: Path, tmp_path: Path
) -> None:
    port = str(quiet_port())

    def start() -> psutil.Process:
        served = serve_command(
            str(model), "--volume", f"cube={volume_path}", "--jobs", str(tmp_path / "jobs"), "--port", port
        )
        served.url()
        return psutil.Process(served.process.pid)

    service = start()
    zyx = np.random.default_rng(0).random((20_000, 3)) * SHAPE - 0.5
    with Client(f"http://127.0.0.1:{port}", retry_s=240) as client:
        job = client.jobs.submit("embed", "cube", zyx, pool="tokens")
        ended = threading.Thread(target=client.jobs.wait, args=(job["id"],), kwargs={"every_s": 0.2})
        ended.start()
        reached = []
        for _ in range(3):
            before = client.jobs.get(job["id"])["done"]
            while (done := client.jobs.get(job["id"])["done"]) < min(before + 1000, 18_000):
                time.sleep(0.05)
            reached.append(done)
            for process in [service, *service.children(recursive=True)]:
                os.kill(process.pid, signal.SIGKILL)
            service = start()
        ended.join(240)
        assert not ended.is_alive()
        assert client.jobs.get(job["id"])["state"] == "done"
        out = client.jobs.fetch(job["id"], tmp_path / "tokens.npy")
    assert reached == sorted(reached)
    assert reached[0] < 20_000
    found = np.load(out, mmap_mode="r")
    rows = np.random.default_rng(1).choice(len(zyx), 500, replace=False)
    expected = cf.embed(encoder, cf.Volume.open(volume_path), zyx[rows], pool="tokens", device="cpu")
    np.testing.assert_allclose(found[rows], expected, rtol=1e-3, atol=1e-4)
    assert Embeddings.open(tmp_path / "jobs" / job["id"] / "embeddings.emb.zarr").verify() > 0
