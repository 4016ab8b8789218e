"""The routes through HTTP, BentoML and all: what is answered, what is refused, whose mistake stays whose."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.models.checkpoint import Encoder
from serving import npy
from serving.app import create_app
from serving.core import Core
from serving.guard import Guard
from serving.schemas import Limits, Settings

CROP, SHAPE, VOXEL_UM = (8, 16, 16), (24, 60, 50), (4.0, 1.8, 1.8)  # of the fixtures

NPY = {"Content-Type": "application/x-npy"}
JSON = {"Content-Type": "application/json"}


def post(client, array: np.ndarray, query: str = "", **headers: str):
    return client.post(f"/v1/embed{query}", content=npy.dump(array), headers=NPY | headers)


def vectors(reply) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-npy"
    return np.load(io.BytesIO(reply.content), allow_pickle=False)


def refused(reply, status: int, *parts: str) -> str:
    """The sentence of a refusal, which always has the same shape."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"}
    assert set(error) == {"code", "message"}
    for part in parts:
        assert part in error["message"]
    assert "Traceback" not in error["message"]
    return error["message"]


def same(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    worst = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert worst.max() <= tolerance


def engine_with(change: Callable) -> Callable:
    """A loader of the usual engine whose `embed` is `change(engine, embed)`."""

    def load(settings):
        from serving.engine import Engine

        engine = Engine.load(settings)
        engine.embed = change(engine, engine.embed)
        return engine

    return load


class Gate:
    """Holds the model up until it is opened."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def load(self, settings):
        def held(engine, embed):
            def wait(pool, crops):
                self.reached.set()
                self.open.wait(20)
                self.batches.append(len(crops))
                return embed(pool, crops)

            return wait

        return engine_with(held)(settings)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


# --- what is answered


@pytest.mark.parametrize("pool", [None, "mean", "cls", "centre"])
def test_crops_give_the_vectors_that_python_gives(client, encoder: Encoder, crops, pool: str | None) -> None:
    found = vectors(post(client, crops, "" if pool is None else f"?pool={pool}"))
    same(found, cf.embed_crops(encoder, crops, pool=pool))


def test_a_channel_axis_may_be_there_or_not(client, crops) -> None:
    np.testing.assert_array_equal(vectors(post(client, crops[:, None])), vectors(post(client, crops)))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_raw_integers_come_with_their_window(client, encoder: Encoder, dtype: str, order: str) -> None:
    raw = np.random.default_rng(2).integers(0, 5000, (3, *CROP)).astype(np.uint16)
    expected = cf.embed_crops(encoder, raw, window=(217.5, 4096.0))
    same(vectors(post(client, np.asarray(raw, dtype, order=order), "?window=217.5,4096")), expected)


def test_big_endian_floats_are_read_as_what_they_are(client, crops) -> None:
    np.testing.assert_array_equal(vectors(post(client, crops.astype(">f4"))), vectors(post(client, crops)))


def test_json_where_the_client_asks_for_it(client, encoder: Encoder, crops) -> None:
    reply = post(client, crops, Accept="application/json")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["model"] == encoder.sha256
    np.testing.assert_array_equal(np.float32(reply.json()["embeddings"]), vectors(post(client, crops)))
    assert post(client, crops, Accept="application/x-npy, application/json").content[:6] == b"\x93NUMPY"
    assert post(client, crops, Accept="*/*").content[:6] == b"\x93NUMPY"


def test_octet_stream_is_taken_too(client, crops) -> None:
    assert post(client, crops, **{"Content-Type": "application/octet-stream"}).status_code == 200


def test_points_give_the_vectors_that_python_gives(client, encoder: Encoder, volume_path: Path) -> None:
    points = np.random.default_rng(3).random((150, 3)) * SHAPE - 0.5  # some crops reach over the border
    asked = {"volume": "cube", "points_zyx": points.tolist()}
    expected = cf.embed(encoder, cf.Volume.open(volume_path), points, device="cpu")
    same(vectors(client.post("/v1/embed/points", json=asked)), expected)
    reply = client.post(
        "/v1/embed/points", json=asked | {"pool": "centre"}, headers={"Accept": "application/json"}
    )
    expected = cf.embed(encoder, cf.Volume.open(volume_path), points, pool="centre", device="cpu")
    same(np.float32(reply.json()["embeddings"]), expected)


def test_one_point_is_one_number_everywhere(client, encoder: Encoder, volume_path: Path) -> None:
    """Python's embed, crops read by hand and sent, and points by name."""
    volume, point = cf.Volume.open(volume_path), np.array([[12.2, 31.0, 25.4]])
    expected = cf.embed(encoder, volume, point, device="cpu")
    start = np.floor(point[0] + 0.5).astype(int) - np.array(CROP) // 2
    raw = volume.read(tuple(start), CROP)[None]
    low, high = client.get("/v1/info").json()["volumes"]["cube"]["window"]
    same(vectors(post(client, raw, f"?window={low},{high}")), expected)
    asked = {"volume": "cube", "points_zyx": point.tolist()}
    same(vectors(client.post("/v1/embed/points", json=asked)), expected)


def test_small_json_gives_the_same_vectors(client, encoder: Encoder, crops) -> None:
    reply = client.post("/embed_json", json={"crops": crops.tolist(), "pool": "cls"})
    assert reply.status_code == 200
    assert reply.json()["model"] == encoder.sha256
    same(np.float32(reply.json()["embeddings"]), cf.embed_crops(encoder, crops, pool="cls"))


def test_info_tells_all_that_a_client_needs(client, encoder: Encoder) -> None:
    info = client.get("/v1/info").json()
    assert info["name"] == "tiny"
    assert info["sha256"] == encoder.sha256
    assert info["crop_zyx"] == list(CROP)
    assert info["voxel_um"] == list(VOXEL_UM)
    assert info["pool"] == "mean"
    assert info["dimension"] == 48
    assert info["window_rule"] == {"kind": "percentiles", "low": 0.5, "high": 99.9}
    assert info["architecture"]["depth"] == 2
    assert info["volumes"]["cube"]["shape_zyx"] == list(SHAPE)
    assert info["limits"]["max_json_crops"] == 64
    assert "/tmp" not in json.dumps(info)


def test_a_request_larger_than_a_batch_and_the_batch_around_it_do_not_change_a_vector(
    client, encoder: Encoder
) -> None:
    many = np.random.default_rng(4).random((150, *CROP), np.float32)
    alone = vectors(post(client, many))
    same(alone, cf.embed_crops(encoder, many, batch=64))
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda i: vectors(post(client, many[i : i + 10])), range(0, 150, 10)))
    same(np.concatenate(parts), alone, 1e-5)


# --- what is refused


@pytest.mark.parametrize(
    ("array", "query", "status", "message"),
    [
        (np.zeros((2, *CROP), np.uint16), "", 422, "raw integers need"),
        (np.full((2, *CROP), 1.5, np.float32), "", 422, "values from 1.5 to 1.5"),
        (np.full((2, *CROP), -0.1, np.float32), "", 422, "in [0, 1]"),
        (np.full((2, *CROP), np.nan, np.float32), "", 422, "NaN or infinite"),
        (np.full((2, *CROP), np.inf, np.float32), "", 422, "NaN or infinite"),
        (np.zeros((2, *CROP), np.float32), "?window=0,100", 422, "came with a window"),
        (np.zeros((2, *CROP), np.float64), "", 422, "of type float64"),
        (np.zeros((2, *CROP), np.uint8), "?window=0,100", 422, "of type uint8"),
        (np.zeros((2, *CROP), bool), "", 422, "of type bool"),
        (np.zeros(CROP, np.float32), "", 422, "a single crop needs its leading axis"),
        (np.zeros((2, 16, 16, 8), np.float32), "", 422, "transpose them"),
        (np.zeros((0, *CROP), np.float32), "", 422, "no crop at all"),
        (np.float32(0.5), "", 422, "crops have shape ()"),
        (np.zeros((2, 2048), np.float32), "", 422, "crops have shape (2, 2048)"),
        (np.zeros((2, *CROP), np.uint16), "?window=0", 422, "LO,HI"),
        (np.zeros((2, *CROP), np.uint16), "?window=9,1", 422, "the lower one first"),
        (np.zeros((2, *CROP), np.uint16), "?window=0,nan", 422, "LO,HI"),
        (np.zeros((2, *CROP), np.uint16), "?window=0,1&window=0,2", 422, "given twice"),
        (
            np.zeros((2, *CROP), np.uint16),
            "?windows=0,1",
            422,
            "'windows' is unknown here; known: dtype, layer, model, normalize, pool, whiten, window",
        ),
        (np.zeros((2, *CROP), np.float32), "?pool=max", 422, "one of mean, cls, centre"),
    ],
)
def test_crops_that_cannot_be_meant(client, array, query: str, status: int, message: str) -> None:
    refused(post(client, array, query), status, message)


def test_one_bad_value_among_many_is_found(client, crops) -> None:
    crops[3, 1, 2, 3] = np.nan
    refused(post(client, crops), 422, "the first is crop 3")


def test_what_is_no_npy(client) -> None:
    refused(client.post("/v1/embed", content=b"\x80\x04pickle", headers=NPY), 400, "no .npy file")
    refused(client.post("/v1/embed", content=b"", headers=NPY), 400, "ends inside the .npy header")
    whole = npy.dump(np.zeros((2, *CROP), np.float32))
    refused(client.post("/v1/embed", content=whole[:-7], headers=NPY), 400, "promises")
    refused(client.post("/v1/embed", content=whole + b"more", headers=NPY), 400, "promises")


def test_pickles_are_never_read(client) -> None:
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    held = io.BytesIO()
    np.save(held, np.array([Bomb()], dtype=object), allow_pickle=True)
    refused(client.post("/v1/embed", content=held.getvalue(), headers=NPY), 422, "never unpickled")
    reply = client.post(
        "/embed_json", content=b"\x80\x04.", headers={"Content-Type": "application/vnd.bentoml+pickle"}
    )
    refused(reply, 415, "/embed_json reads application/json")


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_a_body_has_to_say_what_it_is(client, crops, media_type: str) -> None:
    reply = client.post("/v1/embed", content=npy.dump(crops), headers={"Content-Type": media_type})
    refused(reply, 415, "application/x-npy")


@pytest.mark.parametrize("path", ["/embed_json", "/v1/embed/points"])
def test_json_has_to_say_so(client, path: str) -> None:
    """What a web page can send without being asked, a form or plain text, is not read."""
    refused(client.post(path, content=b"{}", headers={"Content-Type": "text/plain"}), 415, "application/json")
    refused(client.post(path, files={"crops": b"1"}), 415, "multipart/form-data")


def test_compressed_bodies_other_than_gzip_are_not_read(client, crops) -> None:
    refused(post(client, crops, **{"Content-Encoding": "br"}), 415, "Content-Encoding 'br' is not read")


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        (
            {"volume": "brain", "points_zyx": [[1, 2, 3]]},
            404,
            "no volume is registered as 'brain'; registered: cube",
        ),
        ({"volume": "../cube", "points_zyx": [[1, 2, 3]]}, 404, "registered: cube"),
        ({"volume": "cube", "points_zyx": [[1, 2, 60]]}, 422, "outside the volume"),
        ({"volume": "cube", "points_zyx": [[1, 2, 3], [45, 20, 3]]}, 422, "z, y, x in voxels"),
        ({"volume": "cube", "points_zyx": [[-0.6, 2, 3]]}, 422, "outside the volume"),
        ({"volume": "cube", "points_zyx": [[1, 2]]}, 422, "shape (1, 2)"),
        ({"volume": "cube", "points_zyx": [[1, 2, 3], [1, 2]]}, 422, "numbers"),
        ({"volume": "cube", "points_zyx": []}, 422, "no points"),
        ({"volume": "cube", "points_zyx": [1, 2, 3]}, 422, "points_zyx.0"),
        ({"volume": "cube", "points_zyx": [["1", 2, 3]]}, 422, "points_zyx.0.0"),
        ({"volume": "cube", "points_zyx": [[True, 2, 3]]}, 422, "points_zyx.0.0"),
        ({"volume": "cube"}, 422, "points_zyx"),
        ({"volume": "cube", "points": [[1, 2, 3]], "points_zyx": [[1, 2, 3]]}, 422, "points"),
        ({"volume": "cube", "points_zyx": [[1, 2, 3]], "pool": "max"}, 422, "pool"),
        ({"volume": "cube", "points_zyx": [[1, 2, 3]] * 10_001}, 413, "10000 are the most"),
    ],
)
def test_points_that_cannot_be_meant(client, asked: dict, status: int, message: str) -> None:
    refused(client.post("/v1/embed/points", json=asked), status, message)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_points_that_are_no_numbers(client, number: str) -> None:
    body = f'{{"volume": "cube", "points_zyx": [[1, 2, {number}]]}}'
    reply = client.post("/v1/embed/points", content=body, headers=JSON)
    assert reply.status_code in (400, 422)
    refused(reply, reply.status_code)


@pytest.mark.parametrize("path", ["/embed_json", "/v1/embed/points"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_broken_json_is_a_sentence(client, path: str, body: bytes) -> None:
    reply = client.post(path, content=body, headers=JSON)
    assert reply.status_code in (400, 422)
    refused(reply, reply.status_code)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (
            lambda crops: crops.reshape(5, 16, 8, 16).tolist(),
            422,
            "transpose them",
        ),  # Shape() would reshape it
        (lambda crops: crops.reshape(5, 1, 1, -1).tolist(), 422, "this encoder takes"),
        (lambda crops: [[[["0.5"]]]], 422, "crops.0.0.0.0"),  # DType() would cast it
        (lambda crops: [[[[True]]]], 422, "crops.0.0.0.0"),
        (lambda crops: [[[[0.5, 0.5], [0.5]]]], 422, "ragged"),
        (lambda crops: (crops * 300).tolist(), 422, "in [0, 1]"),
        (lambda crops: [], 422, "crops have shape"),
        (
            lambda crops: np.zeros((65, 1, 1, 1)).tolist(),
            413,
            "65 crops as JSON; 64 are the most here, send .npy to /v1",
        ),
    ],
)
def test_small_json_is_checked_not_adapted(client, crops, change, status: int, message: str) -> None:
    refused(client.post("/embed_json", json={"crops": change(crops)}), status, message)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/embed", 405),
        ("POST", "/v1/info", 405),
        ("DELETE", "/v1/embed/points", 405),
        ("GET", "/embed_json", 405),
        ("POST", "/readyz", 405),
    ],
)
def test_wrong_addresses_and_methods_are_told_in_the_same_shape(client, method, path, status) -> None:
    refused(client.request(method, path), status, path)


# --- limits


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
    found = vectors(client.post("/v1/embed/points", json={"volume": "cube", "points_zyx": points.tolist()}))
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


# --- one request's trouble is its own


def test_a_bad_request_does_not_fail_those_beside_it(start, gate: Gate, encoder: Encoder, crops) -> None:
    client = start(load=gate.load)
    expected = cf.embed_crops(encoder, crops)
    bad = crops.copy()
    bad[0, 0, 0, 0] = np.nan
    with ThreadPoolExecutor(14) as threads:
        first = threads.submit(post, client, crops)
        assert gate.reached.wait(10)
        good = [threads.submit(post, client, crops) for _ in range(12)]
        refused(threads.submit(post, client, bad).result(), 422, "NaN")
        time.sleep(0.2)
        gate.open.set()
        for reply in [first, *good]:
            same(vectors(reply.result()), expected, 1e-5)
    assert max(gate.batches) == 60  # the twelve went together


def test_a_bug_that_one_request_sets_off_stays_with_it(start, encoder: Encoder, crops) -> None:
    gate = Gate()

    def load(settings):
        engine = gate.load(settings)
        held = engine.embed

        def sometimes(pool, given):
            if (given == np.float32(0.125)).any():
                raise RuntimeError("/home/secret/path")
            return held(pool, given)

        engine.embed = sometimes
        return engine

    client = start(load=load)
    bad = crops.copy()
    bad[0, 0, 0, 0] = 0.125
    with ThreadPoolExecutor(14) as threads:
        first = threads.submit(post, client, crops)
        assert gate.reached.wait(10)
        good = [threads.submit(post, client, crops) for _ in range(12)]
        worse = threads.submit(post, client, bad)
        time.sleep(0.2)
        gate.open.set()
        for reply in [first, *good]:
            same(vectors(reply.result()), cf.embed_crops(encoder, crops), 1e-5)
        assert "secret" not in refused(worse.result(), 500, "unexpected error")


def test_a_bug_is_an_answer_at_once_on_every_route(start, crops) -> None:
    def broken(engine, embed):
        def fail(pool, given):
            raise RuntimeError("/home/secret/path")

        return fail

    client = start(load=engine_with(broken))
    began = time.monotonic()
    asked = {"volume": "cube", "points_zyx": [[9, 9, 9]]}
    replies = [
        post(client, crops),
        client.post("/v1/embed/points", json=asked),
        client.post("/embed_json", json={"crops": crops.tolist()}),
    ]
    for reply in replies:
        assert "secret" not in refused(reply, 500, "unexpected error")
    assert time.monotonic() - began < 5
    assert client.get("/readyz").status_code == 200


def test_an_exception_in_middleware_does_not_hang(start) -> None:
    class Broken:
        def __init__(self, app) -> None:
            self.app = app

        async def __call__(self, scope, receive, send) -> None:
            if scope.get("path") == "/v1/info":
                raise RuntimeError("/home/secret/path")
            await self.app(scope, receive, send)

    client = start(middleware=Broken)
    began = time.monotonic()
    assert "secret" not in refused(client.get("/v1/info"), 500, "unexpected error")
    assert time.monotonic() - began < 5


def test_a_damaged_volume_is_said_without_its_path(start, volume_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(volume_path, copy)
    chunk = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    client = start(volumes={"copy": str(copy)})
    asked = {"volume": "copy", "points_zyx": [[z, 30, 25] for z in range(0, 24, 4)]}
    message = refused(client.post("/v1/embed/points", json=asked), 500, "'copy' cannot be read", "is damaged")
    assert str(tmp_path) not in message


# --- starting and stopping


def test_it_is_alive_but_not_ready_while_the_model_loads(start, crops) -> None:
    go = threading.Event()

    def slow(settings):
        from serving.engine import Engine

        go.wait(20)
        return Engine.load(settings)

    client = start(load=slow, wait=False)
    assert client.get("/livez").status_code == 200
    refused(client.get("/readyz"), 503, "still being loaded")
    reply = post(client, crops)
    refused(reply, 503, "still being loaded")
    assert reply.headers["retry-after"] == "1"
    refused(client.post("/embed_json", json={"crops": crops.tolist()}), 503, "still being loaded")
    go.set()
    while client.get("/readyz").status_code != 200:
        time.sleep(0.01)
    assert post(client, crops).status_code == 200


@pytest.mark.parametrize(
    "problem", [CanvasError("/home/secret is gone"), RuntimeError("/home/secret is gone")]
)
def test_a_model_that_cannot_be_loaded_is_neither_ready_nor_alive(start, problem: Exception) -> None:
    def fail(settings):
        raise problem

    client = start(load=fail, wait=False)
    while client.get("/livez").status_code == 200:
        time.sleep(0.01)
    for path in ("/livez", "/readyz", "/v1/info"):
        assert "secret" not in refused(client.get(path), 503)


def test_a_volume_of_another_voxel_size_is_refused_at_the_start(
    model: Path, encoder: Encoder, tmp_path: Path
) -> None:
    from serving.engine import Engine
    from serving.schemas import Settings

    path = tmp_path / "coarse.zarr"
    with cf.Volume.create(path, SHAPE, voxel_um=(4.0, 3.6, 3.6), chunk_zyx=(8, 16, 16)) as writer:
        writer.write((0, 0, 0), np.random.default_rng(6).integers(0, 999, SHAPE).astype(np.uint16))
    settings = Settings(model=str(model), volumes={"coarse": str(path)}, device="cpu")
    with pytest.raises(ModelMismatch, match="--resample"):
        Engine.load(settings)
    points = np.array([[12.0, 30.0, 25.0], [5.0, 20.0, 21.5]])
    for option in ("resample", "any_voxel"):
        engine = Engine.load(settings.model_copy(update={option: True}))
        hosted = engine.volumes["coarse"]
        rows, crops = next(hosted.batches(hosted.check(points.tolist()), 64))
        expected = cf.embed(encoder, cf.Volume.open(path), points, device="cpu", **{option: True})
        same(engine.embed("mean", crops), expected[rows])


# --- clients that leave, or only pretend to send


def ask(
    gate: Gate, settings: Settings, messages: Callable, headers: dict[str, str]
) -> tuple[list[dict], Core]:
    """One request, message by message as the server hands it on; returns what was sent back."""

    async def whole() -> tuple[list[dict], Core]:
        core = Core(lambda: settings, load=gate.load)
        guard = Guard(create_app(core), lambda: core.limits, raw=("/embed",))
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
def settings(model: Path) -> Settings:
    return Settings(model=str(model), device="cpu", limits=Limits(stall_s=0.1))


def test_work_is_dropped_when_its_client_leaves(gate: Gate, settings: Settings, crops) -> None:
    body = npy.dump(np.concatenate([crops] * 40))

    async def messages(core: Core):
        yield {"type": "http.request", "body": body, "more_body": False}
        while not gate.reached.is_set():
            await asyncio.sleep(0.01)
        assert core._batcher.held_rows == 200
        yield {"type": "http.disconnect"}

    sent, core = ask(gate, settings, messages, NPY | {"Content-Length": str(len(body))})
    assert core._batcher.held_rows == 0
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


def test_a_body_that_stops_coming_is_given_up(gate: Gate, settings: Settings, crops) -> None:
    body = npy.dump(crops)

    async def messages(core: Core):
        yield {"type": "http.request", "body": body[:5000], "more_body": True}
        await asyncio.sleep(60)

    sent, _ = ask(
        gate, settings, messages, NPY | {"Content-Length": str(len(body)), "Expect": "100-continue"}
    )
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["message"] == "the body brought nothing for 0.1 s"
