"""The service under load: every answer compared, quick refusals, and memory that does not grow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import Encoder, save_encoder
from serving.protocol import npy
from tests.serving.load.traffic import LENGTH, Crowd, Known, figure, share, worker_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

NPY = {"Content-Type": "application/x-npy"}
_MOST_MB = 20.0


@pytest.fixture(scope="module")
def known(encoder: Encoder, volume_path: Path) -> Known:
    return Known.of(encoder, volume_path)


def test_sixty_four_clients_for_ten_minutes(
    serve_command: Callable, model: Path, volume_path: Path, known: Known
) -> None:
    served = serve_command(str(model), "--volume", f"cube={volume_path}", "--port", "0")
    crowd = Crowd(served.url(), 64, known.ask)
    time.sleep(share(600, least=10))
    crops = figure(served.url(), "canvas_fm_crops_total")
    told = crowd.stop()
    print(f"\n64 clients, {share(600, least=10)} s: {told.figures()}; {crops:.0f} crops")
    assert told.lost == []
    assert told.wrong == 0
    assert len(told.seconds) > 64
    assert figure(served.url(), "canvas_fm_queue_crops") == 0
    assert served.stop() == 0
    assert "Traceback" not in served.err.read_text()


# --- more than it can do


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of half the paper's depth, which has enough to do that sending is nothing beside it."""
    torch.manual_seed(0)
    mae = MaskedAutoencoder(EncoderConfig(depth=6), DecoderConfig(depth=1))
    folder = tmp_path_factory.mktemp("large") / "large"
    save_encoder(folder, mae, voxel_um=(4.0, 1.8, 1.8))
    return folder


def test_five_times_too_much_is_refused_at_once_and_soon_forgotten(
    serve_command: Callable, large: Path
) -> None:
    """Requests come at five times the measured rate, whatever becomes of them: an open loop."""
    served = serve_command(str(large), "--port", "0")
    body = npy.dump(np.random.default_rng(0).random((8, 16, 32, 32), np.float32))
    answers = asyncio.run(_too_much(served.url(), body, share(60, least=10)))
    refused = [seconds for status, seconds in answers["during"] if status != 200]
    done = [seconds for status, seconds in answers["during"] if status == 200]
    p50, p99, longest = np.percentile(refused, [50, 99, 100])
    print(
        f"\n{answers['rate']:.0f} crops/s alone; of five times that {len(done)} answered, "
        f"{len(refused)} refused: "
        f"p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms, longest {1000 * longest:.0f} ms; "
        f"well again after {answers['recovered']:.2f} s"
    )
    assert {status for status, _ in answers["during"]} == {200, 429} | {
        status for status, _ in answers["during"] if status == 503
    }
    assert len(refused) > 2 * len(done)
    assert p99 <= 0.1
    assert answers["recovered"] <= 5


async def _too_much(url: str, body: bytes, seconds: int) -> dict:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=1000)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:

        async def one() -> tuple[int, float]:
            began = time.monotonic()
            reply = await client.post("/v1/embed", content=body, headers=NPY)
            return reply.status_code, time.monotonic() - began

        for _ in range(3):
            await one()
        began, alone = time.monotonic(), 0
        while time.monotonic() - began < 5:
            alone += sum(status == 200 for status, _ in await asyncio.gather(*(one() for _ in range(8))))
        rate = 8 * alone / (time.monotonic() - began)
        pause_s, tasks = 8 / (5 * rate), []
        began = time.monotonic()
        while (now := time.monotonic()) - began < seconds:
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(max(0.0, began + len(tasks) * pause_s - now))
        ended = time.monotonic()
        while (await one())[0] != 200:
            await asyncio.sleep(0.05)
        recovered = time.monotonic() - ended
        return {"rate": rate, "during": await asyncio.gather(*tasks), "recovered": recovered}


# --- memory

# Found before anything else is imported: a service that keeps two kilobytes of each request for ever.
LEAKY = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "serving.core.batching.batcher":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            kept, submit = [], module.Batcher.submit
            def leaky(self, *args, **options):
                kept.append(bytearray(2048))
                return submit(self, *args, **options)
            module.Batcher.submit = leaky
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def grown_mb(served, known: Known, requests: int) -> float:
    """By how much the worker grows over the second half of so many requests, by the slope of a line."""
    url, worker = served.url(), worker_of(served.process.pid)
    crowd = Crowd(url, 8, lambda client, rng: known.ask(client, rng, most=4))
    counts, sizes = [], []
    while crowd.answers < requests:
        time.sleep(0.25)
        counts.append(crowd.answers)
        sizes.append(worker.memory_info().rss / 2**20)
    told = crowd.stop()
    assert (told.lost, told.wrong) == ([], 0)
    late = np.asarray(counts) >= requests / 2
    slope = np.polyfit(np.asarray(counts)[late], np.asarray(sizes)[late], 1)[0]
    print(f"\n{told.figures()}; {sizes[0]:.0f} MB at first, {sizes[-1]:.0f} MB at last")
    return float(slope * requests / 2)


@pytest.mark.parametrize("leaky", [False, True], ids=["as it is", "leaky"])
def test_memory_does_not_grow_and_a_leak_would_be_seen(
    serve_command: Callable, model: Path, volume_path: Path, known: Known, tmp_path: Path, leaky: bool
) -> None:
    """Under 20 MB over the second half of 50,000 requests; a leak of two kilobytes each is 50 MB there."""
    (tmp_path / "sitecustomize.py").write_text(LEAKY)
    path = {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"} if leaky else {}
    served = serve_command(str(model), "--volume", f"cube={volume_path}", "--port", "0", **path)
    requests = share(50_000, least=1000)
    grown = grown_mb(served, known, requests)
    whole = grown * 25_000 / (requests / 2)
    print(f"{grown:.1f} MB over the second half of {requests} requests; {whole:.1f} MB of 50,000")
    assert served.stop() == 0
    if leaky:
        assert whole > _MOST_MB
    elif LENGTH >= 0.2:  # a short run still warms up in its second half
        assert whole < _MOST_MB
