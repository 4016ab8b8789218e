"""Whatever is sent, by the document or against all rules: no 5xx, no crash, no hang, no path told."""

from __future__ import annotations

import collections
import random
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import canvas_fm as cf
from canvas_fm.data.points import Points
from canvas_fm.inference.embed import embed_to_store
from canvas_fm.models.checkpoint import Encoder
from serving import npy
from serving.client import Client
from tests.serving.traffic import CROP, SHAPE, share, worker_of

schemathesis = pytest.importorskip("schemathesis", reason="fuzzing needs schemathesis, of the extra dev")
FailureGroup = schemathesis.core.failures.FailureGroup
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def served(
    serve_command: Callable, model: Path, encoder: Encoder, volume_path: Path, tmp_path_factory
) -> Iterator:
    """A service of all that can be served, with a folder below which more may be added."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "root").mkdir()
    shutil.copytree(model, folder / "root" / "more")
    shutil.copytree(volume_path, folder / "root" / "more.zarr")
    points = Points(np.random.default_rng(0).random((60, 3)) * SHAPE - 0.5, {"score": np.linspace(0, 1, 60)})
    volume = cf.Volume.open(volume_path)
    made = embed_to_store(encoder, volume, points, folder / "cells.emb.zarr", device="cpu")
    index = cf.Index.build(made, folder / "cells.index")
    service = serve_command(
        *(str(model), "--port", "0", "--volume", f"cube={volume_path}", "--index", f"cells={index.path}"),
        *("--root", str(folder / "root"), "--log", "json", "--limit", "header_s=2", "stall_s=2"),
    )
    service.url()
    worker = worker_of(service.process.pid)
    yield service
    assert worker_of(service.process.pid).pid == worker.pid, "the worker crashed"
    with Client(service.url()) as client:  # and it still works
        assert client.embed(np.zeros((2, *CROP), np.float32)).shape == (2, 48)
        assert client.embed_points("cube", np.array([[9, 9, 9]])).shape == (1, 48)
    assert service.stop() == 0
    assert service.err.read_text().partition("Traceback")[2] == ""


# --- by the document


ELSEWHERE = [  # what the document allows may still not be meant: a crop of another shape, a volume not there
    schemathesis.checks.positive_data_acceptance,
    schemathesis.checks.negative_data_rejection,
    schemathesis.checks.missing_required_header,
    schemathesis.checks.unsupported_method,
]


def arrays() -> st.SearchStrategy[bytes]:
    """Bodies that are `.npy`, whole or broken, of right and wrong types and shapes, or none at all."""
    shapes = st.sampled_from([(1, *CROP), (3, *CROP), (2, 1, *CROP), (1, *CROP[::-1]), (0, *CROP), (), (5,)])
    types = st.sampled_from(["<f4", "<u2", ">f4", ">u2", "<f8", "|u1", "|b1"])

    @st.composite
    def one(draw: Callable) -> bytes:
        shape, dtype = draw(shapes), draw(types)
        array = np.random.default_rng(draw(st.integers(0, 99))).random(shape)
        body = npy.dump((array * draw(st.sampled_from([1, 1, 4000, -1]))).astype(dtype))
        cut = draw(st.sampled_from([None, None, None, 5, 60, -1, -7]))
        return body[:cut] + draw(st.sampled_from([b"", b"", b"", b"more"]))

    return st.one_of(one(), one(), one(), st.binary(max_size=300))


def steered(document: dict) -> dict:
    """The document with the names that this service has, so that more than refusals is reached."""
    names = {"volume": ["cube", "more", "x"], "index": ["cells", "x"], "model": ["tiny", "more", "x"]}
    names |= {"path": ["more", "more.zarr", "../more", "x"], "window": ["0,1", "217.5,4096", "1,0", ""]}
    names |= {"name": ["more", "again"]}

    def walk(part: object) -> None:
        if isinstance(part, dict):
            for name, schema in part.get("properties", {}).items() if "properties" in part else ():
                if name in names and isinstance(schema, dict) and "string" in str(schema):
                    schema.setdefault("examples", names[name])
                    part["properties"][name] = {"anyOf": [{"enum": names[name]}, schema]}
            if part.get("in") == "query" and part.get("name") in names:
                part["schema"] = {"anyOf": [{"type": "string", "enum": names[part["name"]]}, part["schema"]]}
            for value in part.values():
                walk(value)
        elif isinstance(part, list):
            for value in part:
                walk(value)

    for operation in (each for path in document["paths"].values() for each in path.values()):
        walk(operation.get("parameters", []))
    for name in ("PointsRequest", "SearchRequest", "Addition"):
        walk(document["components"]["schemas"][name])
    point = {
        "type": "array",
        "minItems": 3,
        "maxItems": 3,
        "items": {"type": "number", "minimum": 0, "maximum": 23},
    }
    points = document["components"]["schemas"]["PointsRequest"]["properties"]
    points["points_zyx"] = {"anyOf": [{"type": "array", "minItems": 1, "items": point}, points["points_zyx"]]}
    points["layer"] = {"anyOf": [{"enum": [None, 0, 1, 2]}, points["layer"]]}
    points["volume"], points["model"] = {"enum": ["cube", "more", "x"]}, {"enum": [None, "tiny", "x"]}
    cells = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": 61}}
    searches = document["components"]["schemas"]["SearchRequest"]["properties"]
    for key in ("ids", "like"):
        searches[key] = {"anyOf": [cells, searches[key]]}
    return document


def test_ten_thousand_requests_by_the_document(served) -> None:
    schemathesis.openapi.media_type("application/x-npy", arrays(), aliases=["application/octet-stream"])
    schemathesis.openapi.media_type("application/x-safetensors", st.binary(max_size=300))
    url = served.url()
    document = steered(httpx.get(f"{url}/v1/openapi.json").json())
    operations = [each.ok() for each in schemathesis.openapi.from_dict(document).get_all_operations()]
    assert {(each.method.upper(), each.path) for each in operations} == {
        (method.upper(), path) for path, held in document["paths"].items() for method in held
    }
    counted: collections.Counter[tuple[str, str, int]] = collections.Counter()
    faults: dict[str, str] = {}
    wanted, seed = share(10_000, least=300), 0
    while counted.total() < wanted:  # a route without parameters gives but one each time
        missing = wanted - counted.total()
        for operation in operations:
            _send(operation, seed, max(5, -(-missing // len(operations))), url, counted, faults)
        seed += 1
    by_status = collections.Counter()
    for (_, _, status), number in counted.items():
        by_status[status] += number
    print(
        f"\n{counted.total()} requests over {len(operations)} operations; {dict(sorted(by_status.items()))}"
    )
    assert faults == {}
    answered = {path for _, path, status in counted if status < 300}
    assert answered >= {"/v1/embed", "/v1/embed/points", "/v1/search", "/v1/reconstruct", "/v1/info"}


def _send(operation, seed: int, number: int, url: str, counted: collections.Counter, faults: dict) -> None:
    """So many requests, by the document and against it, each answer compared with the document."""
    modes = schemathesis.GenerationMode
    cases = st.one_of(operation.as_strategy(modes.POSITIVE), operation.as_strategy(modes.NEGATIVE))

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=cases)
    def send(case) -> None:
        reply = case.call(base_url=url, timeout=60)
        counted[case.method, operation.path, reply.status_code] += 1
        try:
            case.validate_response(reply, excluded_checks=ELSEWHERE)
            assert not re.search(rb"/tmp/|/root/|site-packages|Traceback", reply.content), (
                "a path of the server"
            )
        except (AssertionError, FailureGroup) as problem:  # all of them are told together
            faults.setdefault(f"{case.method} {operation.path} {reply.status_code}", str(problem)[:2000])

    send()


# --- against all rules


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([line, "Host: x", *headers, "", ""]).encode()


NPY, JSON = "Content-Type: application/x-npy", "Content-Type: application/json"
REQUESTS = [
    head("GET /v1/info HTTP/1.1"),
    head("POST /v1/embed HTTP/1.1", NPY, "Content-Length: 300"),
    head("POST /v1/embed/points HTTP/1.1", JSON, "Content-Length: 50")
    + b'{"volume": "cube", "points_zyx": [[9, 9, 9]]}     ',
    head("POST /embed_json HTTP/1.1", JSON, "Transfer-Encoding: chunked") + b'5\r\n{"cro\r\n0\r\n\r\n',
    head("GET / HTTP/1.1", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: x"),
    head("OPTIONS * HTTP/1.1", "Expect: 100-continue", "Content-Encoding: gzip", "Content-Length: 9"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]
PIECES = [
    b"\r\n",
    b"\0",
    b"\xff" * 50,
    b": ",
    b"HTTP/1.1",
    b"Content-Length: 99999999999\r\n",
    b"..%2f",
    b"A" * 70_000,
]


def garbage(rng: random.Random) -> bytes:
    """A request with bytes changed, left out, doubled or put in, or bytes that are none."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(1, 5000))
    data = bytearray(rng.choice(REQUESTS))
    for _ in range(rng.randrange(0, 6)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[at:at] = rng.choice(PIECES)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 20)]
        elif kind == 2 and at < len(data):
            data[at] = rng.randrange(256)
        else:
            data[at:at] = data[at : at + rng.randrange(1, 60)]
    return bytes(data)


def throw(address: tuple[str, int], rng: random.Random, seen: collections.Counter) -> None:
    """One connection: garbage in a few pieces, then what comes back within a moment, or nothing."""
    with socket.create_connection(address, timeout=5) as connection:
        data = garbage(rng)
        for _ in range(rng.randrange(1, 4)):
            cut = rng.randrange(len(data) + 1)
            connection.sendall(data[:cut])
            data = data[cut:]
        connection.sendall(data)
        if rng.random() < 0.5:
            connection.shutdown(socket.SHUT_WR)
        connection.settimeout(rng.choice([0.01, 0.3]))
        reply = connection.recv(65536)
        for status in re.findall(rb"^HTTP/1\.1 (\d{3})", reply, re.M):
            seen[int(status)] += 1
        assert not re.search(rb"/tmp/|/root/|site-packages|Traceback", reply)


def test_ten_minutes_of_garbage(served) -> None:
    address = (str(urlsplit(served.url()).hostname), int(urlsplit(served.url()).port or 0))
    seen: collections.Counter[int] = collections.Counter()
    problems: list[str] = []
    end = time.monotonic() + share(600, least=10)
    thrown = [0] * 6

    def run(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            thrown[seed] += 1
            try:
                throw(address, rng, seen)
            except OSError:
                pass  # it was cut off, or there was nothing to be said yet
            except AssertionError as problem:
                problems.append(repr(problem))

    threads = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in range(len(thrown))]
    for thread in threads:
        thread.start()
    slowest = 0.0
    with Client(served.url()) as client:
        while time.monotonic() < end:
            began = time.monotonic()
            assert client.embed(np.zeros((1, *CROP), np.float32)).shape == (1, 48)
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.2)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    print(f"\n{sum(thrown)} connections, {dict(sorted(seen.items()))}; slowest good answer {slowest:.2f} s")
    assert problems == []
    assert seen
    assert {status for status in seen if status >= 500} <= {501, 505}
    assert slowest < 5
