"""How much the service takes in, how long it works on it, and clients that leave or only pretend to send."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.models.load_model import Encoder
from serving.api.app import create_app
from serving.api.middleware.request_middleware import RequestMiddleware
from serving.core.core import Core
from serving.protocol import npy
from serving.protocol.settings import NO_SETTINGS, Limits, ServiceSettings
from tests.serving.conftest import (
    CROP,
    JSON,
    NPY,
    SHAPE,
    Gate,
    array_of,
    post,
    refused,
    same,
)

NOT_STARTED = SimpleNamespace(settings=NO_SETTINGS)

# --- limits


def test_two_lengths_of_one_body_are_refused(client) -> None:
    headers = JSON | {"Content-Length": "5", "Transfer-Encoding": "chunked"}
    reply = client.post("/v1/embed/points", content=b"{}", headers=headers)
    refused(reply, 400, "Content-Length and Transfer-Encoding were both sent")
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Content-Encoding", ("gzip", "gzip")),
        ("Content-Type", ("application/json", "text/plain")),
        ("Idempotency-Key", ("a" * 8, "b" * 8)),
    ],
)
def test_a_header_that_has_one_value_is_sent_once(client, name, values) -> None:
    headers = [*((name, value) for value in values), *(JSON.items() if name != "Content-Type" else ())]
    reply = client.post("/v1/embed/points", content=b"{}", headers=headers)
    refused(reply, 400, f"the header {name.lower()} was sent more than once")


def test_a_target_may_have_the_host() -> None:
    """The form of a request by way of a proxy (RFC 9112, 3.2.2)."""
    answered = []

    async def app(scope, receive, send) -> None:
        answered.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing(*_: object) -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    middleware = RequestMiddleware(app, NOT_STARTED)
    for path in ("http://host:3000/v1/info", "HTTPS://host/v1/info", "http://host", "/v1/http://x"):
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        asyncio.run(middleware(scope, nothing, nothing))
    assert answered == ["/v1/info", "/v1/info", "/", "/v1/http://x"]


def test_another_version_of_http_is_refused() -> None:
    statuses = []

    async def send(message) -> None:
        statuses.append(message.get("status"))

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "http_version": "2.0",
        "method": "GET",
        "path": "/",
        "headers": [],
        "query_string": b"",
    }
    asyncio.run(RequestMiddleware(receive, NOT_STARTED)(scope, receive, send))  # the app is never called
    assert statuses[0] == 400


def test_a_body_larger_than_allowed_is_refused_by_its_length_and_while_it_comes(start, crops) -> None:
    client = start(max_body_mb=0.05, max_json_mb=0.01)
    assert post(client, crops[:4]).status_code == 200
    body = npy.dump(np.zeros((8, *CROP), np.float32))
    refused(client.post("/v1/embed", content=body, headers=NPY), 413, "larger than 0.05 MB")
    sent: list[int] = []

    def drip(data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), 1000):
            sent.append(start)
            yield data[start : start + 1000]

    refused(client.post("/v1/embed", content=drip(body), headers=NPY), 413)
    for path in ("/embed_json", "/v1/embed/points"):
        refused(client.post(path, content=b" " * 20_000, headers=JSON), 413, "larger than 0.01 MB")
        refused(client.post(path, content=drip(b" " * 20_000), headers=JSON), 413, "larger than 0.01 MB")


def test_a_promise_of_terabytes_is_refused_at_the_header(client) -> None:
    text = b"{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000, 8, 16, 16)}"
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    reply = client.post("/v1/embed?window=0,1", content=header + bytes(1000), headers=NPY)
    refused(reply, 413, "256 MB are the most")


def test_a_full_queue_says_when_to_come_back(start, gate: Gate, crops) -> None:
    client = start(load=gate.load, max_queue_crops=8)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(post, client, crops)
        assert gate.reached.wait(10)
        reply = post(client, crops)
        refused(reply, 429, "5 crops are waiting, 8 are the most")
        assert int(reply.headers["retry-after"]) >= 1
        reply = client.post("/v1/embed/points", json={"volume": "cube", "points_zyx": [[9, 9, 9]] * 5})
        refused(reply, 429, "come back in")
        gate.open.set()
        assert first.result().status_code == 200
    assert post(client, crops).status_code == 200
    refused(post(client, np.zeros((9, *CROP), np.float32)), 413, "9 crops in one request; 8 are the most")


def test_many_points_pass_through_a_small_queue(start, encoder: Encoder, volume_path: Path) -> None:
    client = start(max_queue_crops=8, max_batch=8)
    points = np.random.default_rng(5).random((50, 3)) * SHAPE - 0.5
    found = array_of(client.post("/v1/embed/points", json={"volume": "cube", "points_zyx": points.tolist()}))
    same(found, cf.embed(encoder, cf.Volume.open(volume_path), points, batch=8, device="cpu"))


def test_all_bodies_together_are_limited(start, gate: Gate, crops) -> None:
    client = start(load=gate.load, max_inflight_mb=0.06)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(post, client, crops)
        assert gate.reached.wait(10)
        refused(post(client, crops), 429, "too much is being worked on")
        gate.open.set()
        assert first.result().status_code == 200
    assert post(client, crops).status_code == 200


def test_a_deadline_is_kept(start, gate: Gate, crops) -> None:
    client = start(load=gate.load, deadline_s=0.2)
    refused(post(client, crops), 504, "no answer within 0.2 s")
    asked = {"volume": "cube", "points_zyx": [[9, 9, 9]]}
    refused(client.post("/v1/embed/points", json=asked), 504, "no answer within 0.2 s")
    refused(client.post("/embed_json", json={"crops": crops.tolist()}), 504, "no answer within 0.2 s")


# --- clients that leave, or only pretend to send


def ask(
    gate: Gate, settings: ServiceSettings, messages: Callable, headers: dict[str, str]
) -> tuple[list[dict], Core]:
    """One request, message by message as the server hands it on; returns what was sent back."""

    async def whole() -> tuple[list[dict], Core]:
        core = Core(lambda: settings, load=gate.load)
        guard = RequestMiddleware(create_app(core), core, raw=("/embed",))
        await core.start()
        while not core.ready:
            await asyncio.sleep(0.01)
        sent: list[dict] = []
        source = messages(core)

        async def receive() -> dict:
            return await anext(source)

        async def send(message: dict) -> None:
            sent.append(message)

        raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": raw, "query_string": b""}
        async with asyncio.timeout(20):
            await guard(scope, receive, send)
        assert guard.inflight == 0
        gate.open.set()
        await core.stop()
        return sent, core

    return asyncio.run(whole())


@pytest.fixture
def settings(model: Path) -> ServiceSettings:
    return ServiceSettings(model=str(model), device="cpu", limits=Limits(stall_s=0.1))


def test_work_is_dropped_when_its_client_leaves(gate: Gate, settings: ServiceSettings, crops) -> None:
    body = npy.dump(np.concatenate([crops] * 40))

    async def messages(core: Core):
        yield {"type": "http.request", "body": body, "more_body": False}
        while not gate.reached.is_set():
            await asyncio.sleep(0.01)
        assert core._batcher.held_rows == 200
        yield {"type": "http.disconnect"}

    sent, core = ask(gate, settings, messages, NPY | {"Content-Length": str(len(body))})
    assert core._batcher.held_rows == 0
    end = time.monotonic() + 10  # the model's thread ends after the service has let go of it
    while not gate.batches and time.monotonic() < end:
        time.sleep(0.01)
    assert gate.batches == [64]  # what was in the model's hands, and no more
    assert sent[0]["status"] == 400  # nobody reads it


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(gate, settings, crops) -> None:
    body = npy.dump(crops)
    waited: list[bool] = []

    async def messages(core: Core):
        yield {"type": "http.request", "body": body[:5000], "more_body": True}
        yield {"type": "http.disconnect"}
        waited.append(True)

    sent, core = ask(gate, settings, messages, NPY | {"Content-Length": str(len(body))})
    assert sent[0]["status"] == 400
    assert not waited  # for more from one that left
    assert core._batcher.held_rows == 0


def test_a_body_that_stops_coming_is_given_up(gate: Gate, settings: ServiceSettings, crops) -> None:
    body = npy.dump(crops)

    async def messages(core: Core):
        yield {"type": "http.request", "body": body[:5000], "more_body": True}
        await asyncio.sleep(60)

    sent, _ = ask(
        gate, settings, messages, NPY | {"Content-Length": str(len(body)), "Expect": "100-continue"}
    )
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["message"] == "the body brought nothing for 0.1 s"
