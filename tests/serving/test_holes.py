"""The public holes of older versions of BentoML and Starlette, replayed: refused, nothing done or fetched.

CVE-2024-2912, CVE-2025-27520, CVE-2025-32375 and CVE-2024-9070: pickles in a body, by its Content-Type or
by the headers of a runner. CVE-2024-9056 and CVE-2024-47874: boundaries and fields of forms without end.
CVE-2025-54381: addresses in JSON and forms that the server fetches. CVE-2025-62727: a Range that takes
quadratic time. And what a client could set that is the framework's own: contexts, tasks, runners.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pytest

from serving.api.app import ROUTES

POST_ROUTES = [f"/v1{route.path}" for route in ROUTES if route.method == "POST"] + [
    "/embed_json",
    "/",
    "/predict",
]
PICKLES = [
    "application/vnd.bentoml+pickle",
    "application/vnd.bentoml+pickle; charset=utf-8",
    "Application/Vnd.BentoML+Pickle",
    "application/vnd.bentoml.stream_response",
    "application/octet-stream",
    "application/x-npy",
    "application/json",
    "multipart/form-data; boundary=x",
    "",
]
RUNNER = [
    {"args-number": "1", "Payload-Container": "NdarrayContainer", "Payload-Meta": '{"format": "default"}'},
    {
        "args-number": "1",
        "Payload-Container": "PandasDataFrameContainer",
        "Payload-Meta": '{"format": "default"}',
    },
    {"args-number": "1", "Payload-Container": "DefaultContainer", "Payload-Meta": "{}"},
    {"args-number": "2"},
    {"args-number": "1", "Payload-Container": "NdarrayContainer", "Payload-Meta": '{"buffer-lengths": "1"}'},
]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("route", POST_ROUTES)
def test_a_pickle_is_never_opened(client, tmp_path: Path, route: str) -> None:
    mark = tmp_path / "mark"
    bodies = [pickle.dumps(Touch(mark), protocol=protocol) for protocol in (0, 5)]
    for number, (media_type, more) in enumerate(product(PICKLES, ({}, *RUNNER))):
        body = bodies[(number + number // (1 + len(RUNNER))) % 2]
        headers = {"Content-Type": media_type, "Batch-Size": "-1", "Buffer-Lengths": str(len(body))}
        reply = client.post(route, content=body, headers=headers | more)
        assert 400 <= reply.status_code < 500, (media_type, more, reply.text)
    assert not mark.exists()


def test_the_pickle_of_these_tests_does_something(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.fixture
def asked() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server on this machine, and what was asked of it."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    seen.append(connection.recv(1000))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", seen


@pytest.mark.parametrize("route", POST_ROUTES)
def test_no_address_is_fetched(client, asked, route: str) -> None:
    address, seen = asked
    places = (address, address.replace("127.0.0.1", "localhost"), f"{address}/latest/meta-data/")
    fields = ("crops", "volume", "path", "vectors", "model", "url", "file", "image")
    for place, field in zip(cycle(places), fields, strict=False):
        bodies = [
            {"json": {field: place}},
            {"json": {field: [place]}},
            {"data": {field: place}, "files": {"other": b"x"}},
            {"files": {field: ("x", place.encode(), "text/plain")}},
            {"content": place.encode(), "headers": {"Content-Type": "application/json"}},
            {"content": json.dumps(place).encode(), "headers": {"Content-Type": "application/json"}},
        ]
        for body in bodies:
            assert 400 <= client.post(route, **body).status_code < 500
    assert seen == []
    # … which would have been noticed
    socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()
    end = time.monotonic() + 5
    while not seen and time.monotonic() < end:
        time.sleep(0.01)
    assert seen


@pytest.mark.parametrize("route", POST_ROUTES)
def test_a_form_is_refused_before_it_is_read(client, route: str) -> None:
    """A boundary without an end, and fields that are kept in memory: both need the form to be parsed."""
    endless = b"--x" + b"-" * 2_000_000 + b"\r\n"
    field = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"A" * 2_000_000 + b"\r\n--x--\r\n"
    for kind in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        for body in (endless, field):
            began = time.process_time()
            reply = client.post(route, content=body, headers={"Content-Type": kind})
            assert 400 <= reply.status_code < 500
            assert time.process_time() - began < 1


@pytest.mark.parametrize("path", ["/", "/static_content/index.css", "/v1/info", "/docs.json", "/metrics"])
def test_a_range_of_a_thousand_pieces_is_no_work(client, path: str) -> None:
    ranges = ",".join(f"{i}-{i}" for i in range(0, 8000, 2))
    began = time.process_time()
    reply = client.get(path, headers={"Range": f"bytes=0-,{ranges}"})
    assert reply.status_code < 500
    assert len(reply.content) < 2_000_000
    assert time.process_time() - began < 1


@pytest.mark.parametrize("more", [{"ctx": {}}, {"context": {"request": {}}}, {"self": 1}, {"__args__": [1]}])
def test_nothing_of_the_framework_can_be_given_by_a_client(client, more: dict) -> None:
    """What it would pass to the function beside the body's fields: none of it changes the answer or fails."""
    crops = np.zeros((1, 8, 16, 16)).tolist()
    plain = client.post("/embed_json", json={"crops": crops})
    reply = client.post("/embed_json", json={"crops": crops} | more)
    assert reply.status_code == 422 or reply.json() == plain.json()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/embed_json/submit"),
        ("GET", "/embed_json/status?task_id=1"),
        ("GET", "/embed_json/get?task_id=1"),
        ("POST", "/embed_json/retry"),
        ("PUT", "/embed_json/cancel"),
        ("POST", "/embed"),
        ("POST", "/CanvasService/embed_json"),
        ("POST", "/v1/../embed_json"),
        ("GET", "/static_content/../app.py"),
        ("GET", "/static_content/%2e%2e/%2e%2e/service.py"),
        ("GET", "/v1/../../../../etc/passwd"),
    ],
)
def test_there_is_no_way_beside_the_routes(client, method: str, path: str) -> None:
    reply = client.request(method, path, content=b"{}" if method == "POST" else b"")
    assert 400 <= reply.status_code < 500
    assert "root:" not in reply.text
    assert "import" not in reply.text
