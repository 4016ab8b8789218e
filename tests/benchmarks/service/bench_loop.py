"""How long the largest bodies and replies hold the event loop, while which nobody else is answered.

    python -m tests.benchmarks.service.bench_loop [PART OF A NAME]

The service runs in this process, its client in another one. A task of the loop sleeps 2 ms at a time. What it
sleeps longer is a hold, without the time in which the loop's thread could run and had no processor (Linux),
and no higher than the processor's time that this process took meanwhile: so other work on the machine does
not count. The goal is 50 ms.
"""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.search.index.index import Index
from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import load, save_encoder
from tests.benchmarks.timing import show

GOAL_MS = 50
JSON, NPY = "application/json", "application/x-npy"
_SCHEDULED = Path("/proc/thread-self/schedstat")
CROP, SHAPE, DIM = (4, 8, 8), (64, 256, 256), 12


def requests() -> Iterator[tuple[str, str, bytes, str, str]]:
    """(name, path, body, its type, accepted type) of the largest bodies that the limits let through."""
    yield from posted()
    yield from crops()


def posted() -> Iterator[tuple[str, str, bytes, str, str]]:
    """Bodies of points, vectors, ids, and of what no route knows."""
    rng = np.random.default_rng(0)
    places = np.round(rng.random((500_000, 3)) * (np.array(SHAPE) - 1), 2)
    some = {"volume": "cube", "points_zyx": places[:10_000].tolist()}
    table = "z,y,x\n" + "".join(f"{z},{y},{x}\n" for z, y, x in places)
    job = {"kind": "embed", "volume": "cube"}
    ones = b",".join([b"[1]"] * 1_900_000)
    for name, path, content in (
        ("points", "/v1/embed/points", some),
        ("job, 500,000 points", "/v1/jobs", job | {"points_zyx": places.tolist()}),
        ("job, 500,000 points as CSV", "/v1/jobs", job | {"points_csv": table}),
        ("too many points", "/v1/embed/points", some | {"points_zyx": places.tolist()}),
        ("vectors", "/v1/search", {"vectors": rng.random((160_000, DIM)).round(4).tolist()}),
        ("256,000 hits", "/v1/search", {"vectors": rng.random((256, DIM)).tolist(), "k": 1000}),
        ("ids", "/v1/search", {"ids": [f"c{n}" for n in range(1_900_000)]}),
        ("rows", "/v1/cells", {"rows": list(range(1_900_000))}),
        ("conditions", "/v1/search", {"ids": [1], "where": ["a=1"] * 1_900_000}),
    ):
        yield name, path, json.dumps(content).encode(), JSON, JSON
    for name, body in (
        ("nested unknown key", b'{"x":[' + b",".join([b"[[[1]]]"] * 600_000) + b"]}"),
        ("wrong at the end", b'{"vectors":[' + ones + b',["a"]]}'),
        ("ragged", b'{"vectors":[' + ones + b",[1,2]]}"),
        ("no JSON at the end", b'{"vectors":[' + ones + b",}"),
    ):
        yield name, "/v1/search", body, JSON, JSON


def crops() -> Iterator[tuple[str, str, bytes, str, str]]:
    """Bodies of crops, and the largest replies."""
    from serving.protocol import npy

    rng = np.random.default_rng(1)
    small, large = rng.random((64, *CROP)).round(4), rng.random((64, 16, 32, 32)).round(4)
    yield "crops as lists", "/embed_json", json.dumps({"crops": small.tolist()}).encode(), JSON, JSON
    text = json.dumps({"crops": large.tolist()})
    yield "crops as lists, too large", "/embed_json", text.encode(), JSON, JSON
    encoded = {"dtype": "uint16", "shape": [1, *CROP], "base64": "A" * 32_000_000}
    text = json.dumps({"crops": encoded, "window": [0, 1]})
    yield "base64", "/v1/embed", text.encode(), JSON, JSON
    each = base64.b64encode(bytes(2 * 256)).decode()
    text = json.dumps({"input": [each] * 8000, "window": [0, 1]})
    yield "OpenAI's shape", "/v1/embeddings", text.encode(), JSON, JSON
    body = npy.dump(rng.random((8192, 1, *CROP)).astype(np.float32))
    for accept in (JSON, NPY, "application/x-safetensors"):
        yield f"8,192 crops, reply {accept}", "/v1/embed?pool=tokens", body, NPY, accept


def client(port: int, pipe: Any, only: str) -> None:
    """Send each request when the parent says so; tell status, bytes and the first words of an error."""
    import http.client

    for name, path, body, kind, accept in requests():
        if only not in name:
            continue
        pipe.send((name, len(body)))
        pipe.recv()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", path, body, {"Content-Type": kind, "Accept": accept})
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        time.sleep(0.2)
        pipe.send((reply.status, len(data), data[:150] if reply.status >= 400 else b""))
    pipe.send(None)


class Holds:
    """The longest hold of the loop since `clear`."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            wall, cpu, queued = time.perf_counter(), time.process_time(), _queued_s()
            await asyncio.sleep(0.002)
            late = time.perf_counter() - wall - 0.002 - (_queued_s() - queued)
            self.longest = max(self.longest, min(late, time.process_time() - cpu))


def _queued_s() -> float:
    """Seconds for which this thread could run and had no processor; 0 where the system does not tell."""
    try:
        return int(_SCHEDULED.read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


async def measure(service: Any, ready: Any) -> list[tuple[str, str, str]]:
    """Start the service in this loop, let the client ask, and note the longest hold of each request."""
    server = uvicorn.Server(
        uvicorn.Config(service.to_asgi(), port=0, log_level="warning", access_log=False, lifespan="on")
    )
    running = asyncio.create_task(server.serve())
    while not (server.started and ready()):
        await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=client, args=(port, there, "".join(sys.argv[1:2]))
    )
    await asyncio.to_thread(process.start)
    holds, rows = Holds(), []
    watching = asyncio.create_task(holds.watch())
    while (message := await asyncio.to_thread(here.recv)) is not None:
        name, size = message
        holds.longest, began = 0.0, time.perf_counter()
        here.send("go")
        status, answered, words = await asyncio.to_thread(here.recv)
        took = time.perf_counter() - began
        held = "" if 1000 * holds.longest <= GOAL_MS else "NOT HELD"
        about = f"{size / 2**20:.1f} MB, {status}, {answered / 2**20:.1f} MB back, {took:.1f} s"
        rows.append(
            (name, f"{1000 * holds.longest:.0f} ms {held}", f"{about} {words.decode(errors='replace')}")
        )
    watching.cancel()
    server.should_exit = True
    await running
    process.join()
    return rows


def main() -> None:
    from serving.core.core import Core
    from serving.launch.bento.bento_service import keep_loaded, make_service
    from serving.protocol.settings import Limits, ServiceSettings

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["BENTOML_HOME"] = name
        architecture = EncoderConfig(crop_zyx=CROP, patch_zyx=(1, 2, 2), dim=DIM, depth=1, heads=1)
        mae = MaskedAutoencoder(architecture, DecoderConfig(dim=DIM, depth=1, heads=1))
        save_encoder(folder / "tiny", mae, voxel_um=(4.0, 1.8, 1.8))
        voxels = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
        with Volume.create(folder / "cube.zarr", SHAPE, voxel_um=(4.0, 1.8, 1.8)) as writer:
            writer.write((0, 0, 0), voxels)
        zyx = np.random.default_rng(1).random((5000, 3)) * (np.array(SHAPE) - 1)
        points = Points(zyx, {"score": np.linspace(0, 1, len(zyx))})
        encoder, volume = load(folder / "tiny"), Volume.open(folder / "cube.zarr")
        made = embed_to_store(encoder, volume, points, folder / "cells.emb.zarr", device="cpu")
        Index.build(made, folder / "cells.index")
        settings = ServiceSettings(
            model=str(folder / "tiny"),
            volumes={"cube": str(folder / "cube.zarr")},
            indexes={"cells": str(folder / "cells.index")},
            jobs=str(folder / "jobs"),
            device="cpu",
            limits=Limits(max_queue_crops=20_000, max_wait_s=600),
        )
        core = Core(lambda: settings, after_load=keep_loaded)
        rows = asyncio.run(measure(make_service(core), lambda: core.ready))
    show(f"Longest hold of the event loop, goal {GOAL_MS} ms", rows)


if __name__ == "__main__":
    main()
