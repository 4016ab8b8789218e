"""What the routes refuse, BentoML and all: each in the same shape, with a sentence."""

from __future__ import annotations

import io

import numpy as np
import pytest

from serving.protocol import npy
from tests.serving.conftest import (
    CROP,
    JSON,
    NPY,
    post,
    refused,
)


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
        (
            np.zeros((2, *CROP), np.float32),
            "?pool=max",
            422,
            "pool is 'max'; expected 'mean', 'cls', 'centre'",
        ),
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
