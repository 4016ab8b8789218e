"""Models, options, search, reconstruction and the document, through HTTP."""

from __future__ import annotations

import base64
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.inference.embed.reconstruct import reconstruct_crops
from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import Encoder, load, save_encoder
from serving.protocol import npy
from tests.serving.conftest import CROP, NPY, array_of, refused

SAFE = "application/x-safetensors"


# --- models and options


def test_several_models_by_name_and_by_sha256(service, encoder: Encoder, other: Encoder) -> None:
    said = service.get("/v1/models").json()["models"]
    assert [(each["name"], each["sha256"]) for each in said] == [
        ("tiny", encoder.sha256),
        ("small", other.sha256),
    ]
    assert (said[1]["backend"], said[1]["precision"], said[1]["card"]) == ("torch", "fp32", None)
    assert (said[1]["layers"], said[1]["dimension"], said[1]["reconstructs"]) == (1, 24, True)
    assert service.get("/v1/info").json()["models"] == ["tiny", "small"]
    crops = np.random.default_rng(0).random((3, 4, 8, 8), np.float32)
    expected = cf.embed_crops(other, crops)
    for name in ("small", other.sha256):
        reply = service.post(f"/v1/embed?model={name}", content=npy.dump(crops), headers=NPY)
        np.testing.assert_allclose(array_of(reply), expected, rtol=1e-5, atol=1e-6)
        assert reply.headers["x-model"] == other.sha256
    refused(
        service.post("/v1/embed", content=npy.dump(crops), headers=NPY), 422, "this encoder takes (n, 1, 8"
    )
    refused(
        service.post("/v1/embed?model=big", content=npy.dump(crops), headers=NPY), 404, "served: tiny, small"
    )
    asked = {"volume": "cube", "points_zyx": [[9, 9, 9]], "model": "small"}
    refused(service.post("/v1/embed/points", json=asked), 422, "small does not fit the volume 'cube'")
    refused(service.post("/v1/embed/points", json=asked | {"volume": "x"}), 404, "no volume is registered")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_options_give_what_python_gives(service, encoder: Encoder, crops, layer: int) -> None:
    query = f"?pool=cls&layer={layer}&normalize=true&dtype=float16"
    found = array_of(service.post(f"/v1/embed{query}", content=npy.dump(crops), headers=NPY))
    assert found.dtype == np.float16
    expected = cf.embed_crops(encoder, crops, pool="cls", layer=layer)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    asked = {"volume": "cube", "points_zyx": [[9, 20, 20]], "layer": layer, "normalize": True}
    one = array_of(service.post("/v1/embed/points", json=asked))
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("pool", ["tokens", "grid"])
def test_a_vector_for_each_patch(service, encoder: Encoder, volume_path: Path, crops, pool: str) -> None:
    found = array_of(service.post(f"/v1/embed?pool={pool}", content=npy.dump(crops), headers=NPY))
    assert found.shape == (5, *{"tokens": (64, 48), "grid": (48, 4, 4, 4)}[pool])
    np.testing.assert_allclose(found, cf.embed_crops(encoder, crops, pool=pool), rtol=1e-4, atol=1e-5)
    asked = {"volume": "cube", "points_zyx": [[9, 20, 20], [12, 30, 21]], "pool": pool, "normalize": True}
    said = service.post("/v1/embed/points", json=asked, headers={"Accept": "application/json"}).json()
    points = np.array(asked["points_zyx"], float)
    expected = cf.embed(encoder, cf.Volume.open(volume_path), points, pool=pool, device="cpu")
    axis = 2 if pool == "tokens" else 1
    expected /= np.linalg.norm(expected, axis=axis, keepdims=True)
    np.testing.assert_allclose(np.array(said["embeddings"]), expected, rtol=1e-4, atol=1e-5)


def test_more_patches_than_a_reply_holds_are_refused(start, crops) -> None:
    client = start(max_body_mb=0.05)
    assert client.post("/v1/embed", content=npy.dump(crops), headers=NPY).status_code == 200
    refused(
        client.post("/v1/embed?pool=tokens", content=npy.dump(crops), headers=NPY),
        413,
        "the tokens of 5 crops are 0.06 MB; 0.05 MB are the most",
    )
    asked = {"volume": "cube", "points_zyx": [[9, 9, 9]] * 5, "pool": "grid"}
    refused(client.post("/v1/embed/points", json=asked), 413, "the grid of 5 crops")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("layer=3", "layer is 3; tiny has 2 blocks: give 0 to 2"),
        ("layer=-1", "layer is '-1'; expected at least 0"),
        ("layer=99999999999", "layer is 99999999999; tiny has 2 blocks: give 0 to 2"),
        ("layer=%D9%A1", "expected a valid integer"),
        ("normalize=maybe", "one of 1, true, 0, false"),
        ("dtype=float64", "dtype is 'float64'; expected 'float32' or 'float16'"),
        ("pool=max", "expected 'mean', 'cls', 'centre', 'contrast', 'tokens' or 'grid'"),
    ],
)
def test_options_that_cannot_be_meant(service, crops, query: str, message: str) -> None:
    refused(service.post(f"/v1/embed?{query}", content=npy.dump(crops), headers=NPY), 422, message)


def test_safetensors_in_and_out(service, encoder: Encoder, crops) -> None:
    from safetensors.numpy import load as open_tensors
    from safetensors.numpy import save

    headers = {"Content-Type": SAFE, "Accept": f"{SAFE}, application/json"}
    reply = service.post("/v1/embed", content=save({"crops": crops}), headers=headers)
    assert reply.headers["content-type"] == SAFE
    np.testing.assert_allclose(
        open_tensors(reply.content)["embeddings"], cf.embed_crops(encoder, crops), rtol=1e-5
    )
    raw = np.random.default_rng(0).integers(0, 4000, (2, *CROP)).astype(np.uint16)
    reply = service.post(
        "/v1/embed?window=0,4000", content=save({"crops": raw}), headers={"Content-Type": SAFE}
    )
    np.testing.assert_allclose(array_of(reply), cf.embed_crops(encoder, raw, window=(0, 4000)), rtol=1e-5)


def tensors(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff" * 8, 400),
        (tensors(b"[" * 5000), 400),
        (tensors({}), 400),
        (tensors({"crops": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(8)), 400),
        (tensors({"__metadata__": {"x": "y" * 100_000}}), 400),
        (tensors({"crops": {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}}), 422),
        (tensors({"other": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}), 422),
        (tensors({"crops": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 4]}}, bytes(4)), 400),
        (tensors({"crops": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)), 400),
        (tensors({"crops": {"dtype": "F32", "shape": [2**30, 2**30], "data_offsets": [0, 2**62]}}), 400),
        (tensors(b'{"crops": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
                 b'"crops": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)), 400),
        (tensors({"crops": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), 400),
        (tensors({"crops": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), 422),
    ],
)  # fmt: skip
def test_broken_safetensors_are_a_sentence(service, body: bytes, status: int) -> None:
    reply = service.post("/v1/embed", content=body, headers={"Content-Type": SAFE})
    refused(reply, status, "")


def test_the_card_of_a_shipped_model_is_its_page() -> None:
    from canvas_fm.files.shipped import card_of, find

    assert card_of(find("model", "detector-cfos")) == find("card", "detector-cfos").read_text()
    assert card_of(Path("tests")) is None


# --- crops inside JSON, whitening


def encoded(crops: np.ndarray) -> dict:
    text = base64.b64encode(np.ascontiguousarray(crops).tobytes()).decode()
    return {"dtype": str(crops.dtype), "shape": list(crops.shape), "base64": text}


def test_crops_as_base64_give_what_npy_gives(service, encoder: Encoder, other: Encoder, crops) -> None:
    body = {"crops": encoded(crops), "pool": "cls", "layer": 1, "normalize": True}
    found = array_of(service.post("/v1/embed", json=body))
    query = "?pool=cls&layer=1&normalize=true"
    expected = array_of(service.post(f"/v1/embed{query}", content=npy.dump(crops), headers=NPY))
    np.testing.assert_array_equal(found, expected)
    raw = np.random.default_rng(0).integers(0, 4000, (2, 1, 4, 8, 8)).astype(np.uint16)
    body = {"crops": encoded(raw), "window": [0, 4000], "model": "small"}
    found = array_of(service.post("/v1/embed", json=body))
    np.testing.assert_allclose(found, cf.embed_crops(other, raw, window=(0, 4000)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"base64": "@@@@"}, 422, "no base64"),
        ({"base64": "AAAA"}, 422, "crops.base64 holds 3 bytes; float32 of shape (5, 8, 16, 16) is 40960"),
        ({"shape": [5, 8, 16]}, 422, "crops have shape (5, 8, 16)"),
        ({"shape": [5, 8, 16, -1]}, 422, "crops.shape.3"),
        ({"shape": [2**39, 8, 16, 16]}, 413, "256 MB are the most"),
        ({"dtype": "float64"}, 422, "crops.dtype"),
        ({"dtype": "uint16"}, 422, "raw integers need"),
        ({"more": 1}, 422, "crops.more"),
    ],
)
def test_base64_that_cannot_be_meant(service, crops, change: dict, status: int, message: str) -> None:
    refused(service.post("/v1/embed", json={"crops": encoded(crops) | change}), status, message)


def test_json_is_held_to_its_own_size_wherever_it_is_sent(start) -> None:
    client = start(max_json_mb=0.01)
    for path in ("/v1/embed", "/v1/refine", "/v1/search"):
        reply = client.post(path, content=b" " * 20_000, headers={"Content-Type": "application/json"})
        refused(reply, 413, "larger than 0.01 MB")


def test_whitened_by_the_cells_of_an_index(service, encoder: Encoder, index: cf.Index, volume_path) -> None:
    rows = index.describe(np.arange(60))
    points = np.array([[row[axis] for axis in "zyx"] for row in rows])
    asked = {"volume": "cube", "points_zyx": points.tolist(), "whiten": "cells"}
    found = array_of(service.post("/v1/embed/points", json=asked)).astype(np.float64)
    unit = index.vectors(np.arange(60)).astype(np.float64)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    # The oracle: distances by the shrunk covariance are those of Mahalanobis.
    covariance = np.cov(unit.T, bias=True)
    shrunk = 0.99 * covariance + 0.01 * np.trace(covariance) / 48 * np.eye(48)
    centred = unit - unit.mean(0)
    expected = np.einsum("nd,de,ne->n", centred, np.linalg.inv(shrunk), centred)
    np.testing.assert_allclose((found**2).sum(1), expected, rtol=2e-3)
    crops = np.random.default_rng(0).random((3, *CROP), np.float32)
    query = "?whiten=cells&normalize=1"
    one = array_of(service.post(f"/v1/embed{query}", content=npy.dump(crops), headers=NPY))
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("whiten=x", 404, "no index is served as 'x'; served: cells"),
        ("whiten=cells&pool=cls", 409, "the index 'cells' does not whiten these: the vectors are of"),
        ("whiten=cells&layer=1", 409, "does not whiten these"),
        ("whiten=cells&model=small", 409, "are of encoder"),
        ("whiten=cells&pool=grid", 422, "an index whitens one vector a crop"),
    ],
)
def test_whitening_that_cannot_be_meant(service, crops, query: str, status: int, message: str) -> None:
    refused(service.post(f"/v1/embed?{query}", content=npy.dump(crops), headers=NPY), status, message)


# --- search


def test_search_gives_what_python_gives(
    service, index: cf.Index, encoder: Encoder, volume_path: Path
) -> None:
    rows = np.array([3, 4])
    vectors = index.vectors(rows)
    expected = index.search(vectors, 5, where=["score>=0.2"])
    asked = {"vectors": vectors.tolist(), "k": 5, "where": ["score>=0.2"], "encoder": encoder.sha256}
    said = service.post("/v1/search", json=asked).json()
    assert (said["index"], said["encoder"]) == ("cells", encoder.sha256)
    assert [hit["row"] for hit in said["hits"]] == expected.rows.ravel().tolist()
    assert [hit["query"] for hit in said["hits"]] == [0] * 5 + [1] * 5
    assert said["hits"][0]["brain"] == "cube"
    np.testing.assert_allclose(said["novelty"], index.novelty(vectors), atol=1e-4)
    by_id = service.post("/v1/search", json={"index": "cells", "ids": [3, "cube:4"], "k": 4}).json()
    assert [hit["row"] for hit in by_id["hits"]] == index.search_ids([3, 4], 4).rows.ravel().tolist()
    liked = service.post("/v1/search", json={"like": [1, 2], "unlike": [5], "k": 6}).json()
    assert [hit["row"] for hit in liked["hits"]] == index.like([1, 2], [5], 6).rows[0].tolist()
    # The crop of a cell finds that cell.
    volume, cell = cf.Volume.open(volume_path), index.describe([7])[0]
    start = np.floor(np.array([cell[axis] for axis in "zyx"]) + 0.5).astype(int) - np.array(CROP) // 2
    window = service.get("/v1/info").json()["volumes"]["cube"]["window"]
    query = f"?window={window[0]},{window[1]}&k=1&where=score>0&where=score<1"
    crop = volume.read(tuple(start), CROP)[None]
    found = service.post(f"/v1/search{query}", content=npy.dump(crop), headers=NPY).json()
    assert found["hits"][0]["row"] == 7
    assert found["hits"][0]["distance"] < 1e-5
    info = service.get("/v1/info").json()["indexes"]["cells"]
    assert (info["rows"], info["structure"], info["recall"]["value"]) == (60, "flat", 1)


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({}, 422, "give one of vectors, ids and like"),
        ({"ids": [1], "like": [2]}, 422, "give one of vectors, ids and like"),
        ({"ids": [1], "unlike": [2]}, 422, "unlike names counter-examples"),
        ({"ids": []}, 422, "ids is empty"),
        ({"like": []}, 422, "no example was given"),
        ({"ids": [10**9]}, 422, "no cell with the id '1000000000'"),
        ({"ids": ["x" * 10_000]}, 422, "no cell with the id"),
        ({"index": "brain", "ids": [1]}, 404, "no index is served as 'brain'; served: cells"),
        ({"vectors": [[1, 2]]}, 409, "query vectors have shape (1, 2)"),
        ({"vectors": [[1], [1, 2]]}, 422, "ragged"),
        ({"vectors": [["1"]]}, 422, "vectors.0.0"),
        ({"vectors": [[1.0] * 48], "encoder": "cd" * 32}, 409, "of encoder cdcdcdcdcdcd"),
        ({"vectors": [[0.0] * 48]}, 422, "all zeros"),
        ({"vectors": [[1.0] * 48] * 257}, 413, "257 queries"),
        ({"ids": [1], "k": 1001}, 413, "1000 hits are the most"),
        ({"ids": [1], "k": 0}, 422, "k"),
        ({"ids": [1], "where": ["marker=TH"]}, 422, "no row of the index has marker=TH"),
        ({"ids": [1], "where": ["colour=red"]}, 422, "no row has a column 'colour'"),
        ({"ids": [1], "where": ["score>0"] * 17}, 413, "16 conditions"),
        ({"ids": [1], "more": 1}, 422, "more"),
    ],
)
def test_searches_that_cannot_be_meant(service, asked: dict, status: int, message: str) -> None:
    reply = service.post("/v1/search", json=asked)
    refused(reply, status, message)
    assert "/tmp" not in reply.text


def test_a_service_without_an_index_says_so(client) -> None:
    refused(client.post("/v1/search", json={"ids": [1]}), 404, "no index was named; served: none")
    refused(client.post("/v1/search?k=0", content=b"", headers=NPY), 422, "k is '0'; expected at least 1")


# --- reconstruction


def test_the_four_rows(service, encoder: Encoder, crops) -> None:
    found = array_of(
        service.post("/v1/reconstruct?mask_ratio=0.55&seed=3", content=npy.dump(crops), headers=NPY)
    )
    assert found.shape == (5, 4, *CROP)
    expected = reconstruct_crops(encoder, crops, mask_ratio=0.55, seed=3)
    np.testing.assert_array_equal(found[:, 0], crops)
    np.testing.assert_allclose(found[:, 2], expected.prediction, rtol=1e-5, atol=1e-6)
    hidden = np.kron(expected.masked.reshape(5, 4, 4, 4), np.ones((1, 2, 4, 4))).astype(bool)
    assert expected.masked[0].sum() == 36
    np.testing.assert_array_equal(found[:, 1], np.where(hidden, 0, crops))
    np.testing.assert_array_equal(found[:, 3], np.where(hidden, found[:, 2], crops))
    again = array_of(
        service.post("/v1/reconstruct?mask_ratio=0.55&seed=4", content=npy.dump(crops), headers=NPY)
    )
    assert (again[:, 1] != found[:, 1]).any()


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("mask_ratio=0", 422, "masks nothing or everything"),
        ("mask_ratio=nan", 422, "mask_ratio is 'nan'; expected a finite number"),
        ("mask_ratio=much", 422, "mask_ratio is 'much'; expected a valid number"),
        ("seed=-1", 422, "seed is '-1'; expected at least 0"),
        ("pool=cls", 422, "'pool' is unknown here"),
        ("model=none", 404, "no model is served"),
    ],
)
def test_reconstructions_that_cannot_be_meant(service, crops, query: str, status: int, message: str) -> None:
    refused(service.post(f"/v1/reconstruct?{query}", content=npy.dump(crops), headers=NPY), status, message)
    many = npy.dump(np.zeros((9, *CROP), np.float32))
    refused(service.post("/v1/reconstruct", content=many, headers=NPY), 413, "8 are the most")


def test_what_a_reconstruction_was_given_is_said(begin_service, tmp_path: Path) -> None:
    architecture = EncoderConfig(crop_zyx=(4, 8, 8), patch_zyx=(1, 2, 2), dim=24, depth=1, heads=2)
    mae = MaskedAutoencoder(architecture, DecoderConfig(dim=12, depth=1, heads=2, targets="patch"))
    save_encoder(tmp_path / "patch", mae, voxel_um=(8.0, 3.6, 3.6))
    crops = npy.dump(np.random.default_rng(0).random((2, 4, 8, 8), np.float32))
    given = "mean and deviation of each hidden patch"
    with ExitStack() as stack:
        client = begin_service(stack, more={"models": {"patch": str(tmp_path / "patch")}})
        reply = client.post("/v1/reconstruct?model=patch", content=crops, headers=NPY)
        assert reply.headers["x-masked-statistics"] == reply.headers["x-given"] == given
        models = client.get("/v1/models").json()["models"]
        assert [each["reconstruction_given"] for each in models] == [None, given]


def test_a_model_without_its_decoder_says_so(begin_service, model: Path, tmp_path: Path, crops) -> None:
    import shutil

    shutil.copytree(model, tmp_path / "bare")
    (tmp_path / "bare" / "decoder.safetensors").unlink()
    assert load(tmp_path / "bare").sha256
    with ExitStack() as stack:
        client = begin_service(stack, more={"models": {"bare": str(tmp_path / "bare")}})
        reply = client.post("/v1/reconstruct?model=bare", content=npy.dump(crops), headers=NPY)
        refused(reply, 422, "bare has no decoder.safetensors, so it cannot reconstruct")
        assert str(tmp_path) not in reply.text


# --- the document


def test_the_document_covers_every_route_and_its_references_hold(service) -> None:
    from serving.api.app import ROUTES

    said = service.get("/v1/openapi.json").json()
    assert service.get("/docs.json").json() == said
    for each in ROUTES:
        assert each.method.lower() in said["paths"][f"/v1{each.path}"]
    assert {"/embed_json", "/livez", "/readyz", "/metrics"} <= set(said["paths"])
    names = set(said["components"]["schemas"])
    for reference in json.dumps(said).split("#/components/schemas/")[1:]:
        assert reference.partition('"')[0] in names
    identities = [each["operationId"] for path in said["paths"].values() for each in path.values()]
    assert len(set(identities)) == len(identities)
    parameters = {each["name"] for each in said["paths"]["/v1/embed"]["post"]["parameters"]}
    assert parameters == {"window", "model", "pool", "layer", "normalize", "whiten", "dtype"}
