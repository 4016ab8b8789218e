"""Whatever is sent, by the document or against all rules: no 5xx, no crash, no hang, no path told."""

from __future__ import annotations

import collections
import copy
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
from canvas_fm.data.points.points import Points
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.models.load_model import Encoder
from serving.client import Client
from serving.protocol import npy
from tests.heads.conftest import spots
from tests.serving.load.traffic import CROP, SHAPE, share, worker_of

schemathesis = pytest.importorskip("schemathesis", reason="fuzzing needs schemathesis, of the extra dev")
jsonschema_rs = pytest.importorskip("jsonschema_rs")
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
    points.write(folder / "candidates.csv")
    volume = cf.Volume.open(volume_path)
    made = embed_to_store(encoder, volume, points, folder / "cells.emb.zarr", device="cpu")
    index = cf.Index.build(made, folder / "cells.index")
    brains = [spots(folder / f"{name}.zarr", seed) for seed, name in enumerate("ab")]
    trained = label_brains([each for each, _ in brains], [each for _, each in brains], labels="label")
    extractor = Extractor(encoder=encoder, device="cpu", ignore_voxel_size=True)
    fit_labelled(Refiner("mae", C=0.01), trained, extractor, folder / "plain", show=False)
    service = serve_command(
        *(str(model), "--port", "0", "--volume", f"cube={volume_path}", "--index", f"cells={index.path}"),
        *("--refiner", f"plain={folder / 'plain'}", "--ignore-voxel-size", "--jobs", str(folder / "jobs")),
        *("--review", f"cube={folder / 'candidates.csv'}"),
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


def fault(document: dict, method: str, path: str, reply) -> str:
    """What is wrong with an answer: its status, type or shape, or what it tells; nothing for a good one."""
    said = document["paths"][path][method.lower()]["responses"].get(str(reply.status_code))
    kind = "".join(reply.headers.get("content-type", [])).partition(";")[0]
    if reply.status_code >= 500 or said is None:
        return f"the status {reply.status_code}: {reply.text[:500]}"
    if re.search(rb"/tmp/|/root/|site-packages|Traceback", reply.content):
        return f"a path of the server: {reply.text[:500]}"
    if kind not in said["content"]:
        return f"the type {kind} where {list(said['content'])} are said"
    if kind == "application/json":
        schema = {**said["content"][kind]["schema"], "components": document["components"]}
        problems = jsonschema_rs.validator_for(schema).iter_errors(reply.json())
        return "; ".join(str(problem)[:500] for problem in problems)
    return ""


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


def meant(jobs: list[str]) -> dict[str, dict]:
    """For names of fields and parameters what this service knows, so that more than refusals is reached."""
    point = {"type": "array", "minItems": 3, "maxItems": 3, "items": {"type": "number", "minimum": 0}}
    point["items"]["maximum"] = 23
    rows = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": 61}}
    number = {"type": "integer", "minimum": 0, "maximum": 23}
    words = {
        "volume": ["cube", "more"],
        "index": ["cells"],
        "model": ["tiny", "more", None],
        "refiner": ["plain"],
        "path": ["more", "more.zarr", "../more"],
        "name": ["more", "again", "score"],
        "window": ["0,1", "217.5,4096", "1,0"],
        "method": ["pca"],
        "layer": [None, 0, 1, 2],
        "id": jobs,
        "k": [1, 5],
        "where": [[], ["score>0.5"]],
    }
    out = {name: {"enum": values} for name, values in words.items()}
    out |= {"points_zyx": {"type": "array", "minItems": 1, "items": point}}
    out |= {key: {"type": "null"} for key in ("vectors", "like", "encoder")}  # one of them, or ids
    out |= {"unlike": {"enum": [[]]}, "normalize": {"type": "boolean"}, "thumbnails": {"type": "boolean"}}
    out |= dict.fromkeys(("ids", "rows"), rows) | dict.fromkeys(("z", "y", "x"), number)
    return out


def steered(document: dict, jobs: list[str]) -> dict:
    """The document in which each such field is that: most of what is asked for by it can be answered."""
    known, document = meant(jobs), copy.deepcopy(document)
    for operation in (each for path in document["paths"].values() for each in path.values()):
        for part in operation.get("parameters", []):
            schema = known.get(part["name"], part["schema"])
            values = [each for each in schema.get("enum", []) if each is not None]
            part["schema"] = schema | {"enum": values} if values else schema
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request") or name == "Addition":
            schema["properties"] = {key: known.get(key, given) for key, given in schema["properties"].items()}
    document["components"]["schemas"]["SearchRequest"]["required"] = ["ids"]
    for path in ("/v1/search", "/v1/refine"):  # beside JSON no parameter is taken
        del document["paths"][path]["post"]["parameters"]
    return document


def some_jobs(url: str) -> list[str]:
    """Ids of jobs in several states."""
    with httpx.Client(base_url=url, timeout=30) as client:
        for number in range(4):
            asked = {"kind": "embed", "volume": "cube", "points_zyx": [[9, 9, 9]] * (number + 1)}
            assert client.post("/v1/jobs", json=asked).status_code < 300
        return [job["id"] for job in client.get("/v1/jobs").json()["jobs"]]


def test_ten_thousand_requests_by_the_document(served) -> None:
    schemathesis.openapi.media_type("application/x-npy", arrays(), aliases=["application/octet-stream"])
    schemathesis.openapi.media_type("application/x-safetensors", st.binary(max_size=300))
    url = served.url()
    document = httpx.get(f"{url}/v1/openapi.json").json()
    documents = [copy.deepcopy(document), steered(document, some_jobs(url))]
    operations = [
        [each.ok() for each in schemathesis.openapi.from_dict(held).get_all_operations()]
        for held in documents
    ]
    assert {(each.method.upper(), each.path) for each in operations[0]} == {
        (method.upper(), path) for path, held in document["paths"].items() for method in held
    }
    counted: collections.Counter[tuple[str, str, int]] = collections.Counter()
    faults: dict[str, str] = {}
    wanted, seed = share(10_000, least=300), 0
    while counted.total() < wanted:  # a route without parameters gives but one each time
        missing = wanted - counted.total()
        for pair in zip(*operations, strict=True):
            _send(pair, document, seed, max(5, -(-missing // len(operations[0]))), url, counted, faults)
        seed += 1
    by_status = collections.Counter()
    for (_, _, status), number in counted.items():
        by_status[status] += number
    said = f"{counted.total()} requests over {len(operations[0])} operations"
    print(f"\n{said}; {dict(sorted(by_status.items()))}")
    assert faults == {}
    answered = {path for _, path, status in counted if status < 300}
    print(f"answered well: {sorted(answered)}; never: {sorted(set(document['paths']) - answered)}")
    assert answered >= {
        f"/v1/{name}" for name in ("embed", "embed/points", "refine", "search", "reconstruct", "jobs", "crop")
    }


def _send(
    pair: tuple, document: dict, seed: int, number: int, url: str, counted: collections.Counter, faults: dict
) -> None:
    """So many requests, by the document, steered and against it, each answer compared with the document."""
    (operation, narrow), modes = pair, schemathesis.GenerationMode
    kinds = [(narrow, modes.POSITIVE), (operation, modes.POSITIVE), (operation, modes.NEGATIVE)]
    cases = st.one_of(*(each.as_strategy(mode) for each, mode in kinds))

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
        if wrong := fault(document, case.method, operation.path, reply):  # all are told together
            faults.setdefault(f"{case.method} {operation.path} {reply.status_code}", wrong)

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


@pytest.mark.timeout(600)  # the service with all that it serves, two minutes, and its end
def test_two_minutes_of_garbage(served) -> None:
    address = (str(urlsplit(served.url()).hostname), int(urlsplit(served.url()).port or 0))
    seen: collections.Counter[int] = collections.Counter()
    problems: list[str] = []
    end = time.monotonic() + share(120, least=10)
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
