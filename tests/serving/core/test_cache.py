"""The cache of embeddings: bounded, counted, and never another crop's answer."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

import canvas_fm as cf
from serving.core.embed.vector_cache import VectorCache
from serving.protocol import npy

CROP, SHAPE = (8, 16, 16), (24, 60, 50)  # of the fixtures


@pytest.fixture
def service(begin_service):
    with ExitStack() as stack:
        yield begin_service(stack, cache_mb=1)


def embed(client, crops: np.ndarray, query: str = "") -> np.ndarray:
    reply = client.post(
        f"/v1/embed{query}", content=npy.dump(crops), headers={"Content-Type": "application/x-npy"}
    )
    assert reply.status_code == 200, reply.text
    return np.load(io.BytesIO(reply.content))


def lookups(client) -> tuple[float, float]:
    lines = client.get("/metrics").text.splitlines()
    found = {
        line.split('"')[1]: float(line.split()[-1])
        for line in lines
        if line.startswith("canvas_fm_cache_lookups_total{")
    }
    return found.get("yes", 0), found.get("no", 0)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_came_before_is_found_and_is_the_same(service, encoder, crops) -> None:
    hits, misses = lookups(service)
    first = embed(service, crops)
    np.testing.assert_array_equal(embed(service, crops), first)
    assert lookups(service) == (hits + 5, misses + 5)
    # Some known, some new, in another order.
    more = np.concatenate([np.random.default_rng(9).random((3, *CROP), np.float32), crops[::-1]])
    same(embed(service, more), cf.embed_crops(encoder, more))
    assert lookups(service) == (hits + 10, misses + 8)
    assert "canvas_fm_cache_bytes" in service.get("/metrics").text


def test_all_that_decides_a_vector_tells_it_from_another(service, encoder, crops) -> None:
    raw = np.random.default_rng(2).integers(0, 4000, (4, *CROP)).astype(np.uint16)
    for _ in range(2):
        for window in ((0.0, 4000.0), (0.0, 3999.0), (1.0, 4000.0)):
            for pool in ("mean", "cls", "tokens"):
                for layer in (1, 2):
                    query = f"?window={window[0]},{window[1]}&pool={pool}&layer={layer}"
                    expected = cf.embed_crops(encoder, raw, window=window, pool=pool, layer=layer)
                    same(embed(service, raw, query), expected)
    first = embed(service, crops)
    crops[2, 7, 15, 15] = np.nextafter(crops[2, 7, 15, 15], 0)  # the last voxel, by its last bit
    second = embed(service, crops)
    assert (first[2] != second[2]).any()
    np.testing.assert_array_equal(first[[0, 1, 3, 4]], second[[0, 1, 3, 4]])


def test_points_are_found_too(service, encoder, volume_path) -> None:
    points = np.random.default_rng(3).random((90, 3)) * SHAPE - 0.5
    expected = cf.embed(encoder, cf.Volume.open(volume_path), points, device="cpu")
    for order in (slice(None), slice(None, None, -1)):
        reply = service.post(
            "/v1/embed/points", json={"volume": "cube", "points_zyx": points[order].tolist()}
        )
        same(np.load(io.BytesIO(reply.content)), expected[order])


def test_it_holds_no_more_than_it_may_and_forgets_the_longest_unused() -> None:
    told: list[tuple[int, int, int]] = []
    cache = VectorCache(4 * (400 + 256), lambda *said: told.append(said))
    vectors = np.arange(600, dtype=np.float32).reshape(6, 100)
    names = [bytes([row]) for row in range(6)]
    cache.keep(names[:4], vectors[:4])
    assert all(vector is not None for vector in cache.find(names[:1]))
    cache.keep(names[4:], vectors[4:])
    found = cache.find(names)
    assert [row for row, vector in enumerate(found) if vector is not None] == [0, 3, 4, 5]
    for row in (0, 3, 4, 5):
        np.testing.assert_array_equal(found[row], vectors[row])
    assert max(held for _, _, held in told) <= 4 * (400 + 256)
    assert told[-1][:2] == (4, 2)
    assert found[0].base is None  # no view of the batch that it came in


def test_many_threads_get_their_own_vectors() -> None:
    cache = VectorCache(100 * (40 + 256))

    def one(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 200, 400):
            (found,) = cache.find([number.tobytes()])
            if found is None:
                cache.keep([number.tobytes()], np.full((1, 10), number, np.float32))
            else:
                assert (found == number).all()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(8)))
