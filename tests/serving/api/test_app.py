"""The routes through HTTP, BentoML and all: what is answered, and whose mistake stays whose."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.models.load_model import Encoder
from serving.protocol.settings import ServiceSettings
from tests.serving.conftest import (
    CROP,
    SHAPE,
    VOXEL_UM,
    Gate,
    array_of,
    engine_with,
    post,
    refused,
    same,
)

# --- what is answered


@pytest.mark.parametrize("pool", [None, "mean", "cls", "centre"])
def test_crops_give_the_vectors_that_python_gives(client, encoder: Encoder, crops, pool: str | None) -> None:
    found = array_of(post(client, crops, "" if pool is None else f"?pool={pool}"))
    same(found, cf.embed_crops(encoder, crops, pool=pool))


def test_a_channel_axis_may_be_there_or_not(client, crops) -> None:
    np.testing.assert_array_equal(array_of(post(client, crops[:, None])), array_of(post(client, crops)))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_raw_integers_come_with_their_window(client, encoder: Encoder, dtype: str, order: str) -> None:
    raw = np.random.default_rng(2).integers(0, 5000, (3, *CROP)).astype(np.uint16)
    expected = cf.embed_crops(encoder, raw, window=(217.5, 4096.0))
    same(array_of(post(client, np.asarray(raw, dtype, order=order), "?window=217.5,4096")), expected)


def test_big_endian_floats_are_read_as_what_they_are(client, crops) -> None:
    np.testing.assert_array_equal(array_of(post(client, crops.astype(">f4"))), array_of(post(client, crops)))


def test_json_where_the_client_asks_for_it(client, encoder: Encoder, crops) -> None:
    reply = post(client, crops, Accept="application/json")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["model"] == encoder.sha256
    np.testing.assert_array_equal(np.float32(reply.json()["embeddings"]), array_of(post(client, crops)))
    assert post(client, crops, Accept="application/x-npy, application/json").content[:6] == b"\x93NUMPY"
    assert post(client, crops, Accept="*/*").content[:6] == b"\x93NUMPY"


def test_octet_stream_is_taken_too(client, crops) -> None:
    assert post(client, crops, **{"Content-Type": "application/octet-stream"}).status_code == 200


def test_points_give_the_vectors_that_python_gives(client, encoder: Encoder, volume_path: Path) -> None:
    points = np.random.default_rng(3).random((150, 3)) * SHAPE - 0.5  # some crops reach over the border
    asked = {"volume": "cube", "points_zyx": points.tolist()}
    expected = cf.embed(encoder, cf.Volume.open(volume_path), points, device="cpu")
    same(array_of(client.post("/v1/embed/points", json=asked)), expected)
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
    same(array_of(post(client, raw, f"?window={low},{high}")), expected)
    asked = {"volume": "cube", "points_zyx": point.tolist()}
    same(array_of(client.post("/v1/embed/points", json=asked)), expected)


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
    alone = array_of(post(client, many))
    same(alone, cf.embed_crops(encoder, many, batch=64))
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda i: array_of(post(client, many[i : i + 10])), range(0, 150, 10)))
    same(np.concatenate(parts), alone, 1e-5)


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
            same(array_of(reply.result()), expected, 1e-5)
    assert max(gate.batches) == 60  # the twelve went together


def test_a_bug_that_one_request_sets_off_stays_with_it(start, encoder: Encoder, crops) -> None:
    gate = Gate()

    def load(settings):
        engine = gate.load(settings)
        held = engine.embed

        def sometimes(pool, given, layer):
            if (given == np.float32(0.125)).any():
                raise RuntimeError("/home/secret/path")
            return held(pool, given, layer)

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
            same(array_of(reply.result()), cf.embed_crops(encoder, crops), 1e-5)
        assert "secret" not in refused(worse.result(), 500, "unexpected error")


def test_a_bug_is_an_answer_at_once_on_every_route(start, crops) -> None:
    def broken(engine, embed):
        def fail(pool, given, layer):
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
        from serving.core.models.model_host import Engine

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
    from serving.core.models.model_host import Engine

    path = tmp_path / "coarse.zarr"
    with cf.Volume.create(path, SHAPE, voxel_um=(4.0, 3.6, 3.6), chunk_zyx=(8, 16, 16)) as writer:
        writer.write((0, 0, 0), np.random.default_rng(6).integers(0, 999, SHAPE).astype(np.uint16))
    settings = ServiceSettings(model=str(model), volumes={"coarse": str(path)}, device="cpu")
    with pytest.raises(ModelMismatch, match="--resample"):
        Engine.load(settings)
    points = np.array([[12.0, 30.0, 25.0], [5.0, 20.0, 21.5]])
    for option in ("resample", "ignore_voxel_size"):
        engine = Engine.load(settings.model_copy(update={option: True}))
        hosted = engine.volumes["coarse"]
        rows, crops = next(hosted.batches(hosted.check(points.tolist()), 64))
        expected = cf.embed(encoder, cf.Volume.open(path), points, device="cpu", **{option: True})
        same(engine.embed("mean", crops), expected[rows])
