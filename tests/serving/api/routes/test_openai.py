"""`/v1/embeddings` in the shape of OpenAI's API: the numbers of `/v1/embed`, in another envelope."""

import base64
import json

import numpy as np
import pytest

import canvas_fm as cf


def texts(crops):
    return [base64.b64encode(crop.tobytes()).decode() for crop in crops]


def test_the_vectors_are_pythons_in_the_shape_that_clients_know(client, encoder, crops):
    body = {"input": texts(crops), "model": "tiny", "user": "me"}
    reply = client.post("/v1/embeddings", json=body)
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert (found["object"], found["model"], reply.headers["x-model"]) == ("list", "tiny", encoder.sha256)
    assert [row["index"] for row in found["data"]] == list(range(len(crops)))
    assert {row["object"] for row in found["data"]} == {"embedding"}
    vectors = np.float32([row["embedding"] for row in found["data"]])
    np.testing.assert_allclose(vectors, cf.embed_crops(encoder, crops), atol=1e-5)
    patches = len(crops) * encoder.config.architecture.tokens
    assert found["usage"] == {"prompt_tokens": patches, "total_tokens": patches}
    packed = client.post(
        "/v1/embeddings", json=body | {"encoding_format": "base64", "dimensions": encoder.dim}
    )
    rows = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in packed.json()["data"]]
    np.testing.assert_allclose(np.stack(rows), vectors, atol=1e-6)


def test_one_raw_crop_comes_with_its_window(client, encoder):
    raw = np.random.default_rng(0).integers(0, 5000, encoder.config.architecture.crop_zyx).astype("<u2")
    body = {"input": texts([raw])[0], "window": [100, 4000], "pool": "cls", "model": encoder.sha256}
    (row,) = client.post("/v1/embeddings", json=body).json()["data"]
    expected = cf.embed_crops(encoder, raw[None], window=(100, 4000), pool="cls")
    np.testing.assert_allclose(np.float32(row["embedding"]), expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"input": "a text"}, 422, "input 0 is no base64"),
        ({"input": "AAAA"}, 422, "input 0 holds 3 bytes; a crop"),
        ({"input": []}, 422, "input"),
        ({"input": 5}, 422, "input"),
        ({"model": "gpt"}, 404, "gpt"),
        ({"dimensions": 7}, 422, "dimensions is 7"),
        ({"pool": "tokens"}, 422, "many vectors a crop"),
        ({"window": [0, 1]}, 422, "of uint16"),
        ({"encoding_format": "hex"}, 422, "encoding_format"),
    ],
)
def test_what_cannot_be_meant_is_refused(client, crops, change, status, sentence):
    reply = client.post("/v1/embeddings", json={"input": texts(crops[:1])} | change)
    assert reply.status_code == status, reply.text
    assert sentence in reply.json()["error"]["message"]


# What `client.embeddings.create` of openai 3.57 sent to a listening socket, input and window left out.
SENT_HEADERS = {
    "accept": "application/json", "content-type": "application/json", "user-agent": "OpenAI/Python 3.57.0",
    "authorization": "Bearer unused", "x-stainless-lang": "python", "x-stainless-async": "false",
    "x-stainless-retry-count": "0", "x-stainless-read-timeout": "600",
}  # fmt: skip
SENT_BODY = '{"model":"base-5","input":[],"encoding_format":"base64","window":[]}'


def test_what_the_client_of_openai_was_seen_to_send_is_answered(client, encoder):
    raw = np.random.default_rng(0).integers(0, 5000, (2, *encoder.config.architecture.crop_zyx)).astype("<u2")
    body = json.loads(SENT_BODY) | {"input": texts(raw), "window": [100, 4000], "model": "tiny"}
    sent = json.dumps(body, separators=(",", ":"))
    reply = client.post("/v1/embeddings", content=sent, headers=SENT_HEADERS)
    assert reply.status_code == 200, reply.text
    rows = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in reply.json()["data"]]
    np.testing.assert_allclose(rows, cf.embed_crops(encoder, raw, window=(100, 4000)), atol=1e-5)


@pytest.mark.slow
def test_the_client_of_openai_itself(serve_command, model, encoder):
    """openai is no dependency: it runs where somebody installed it."""
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install openai")
    served = serve_command(str(model), "--port", "0")
    asks = openai.OpenAI(base_url=f"{served.url()}/v1", api_key="unused", max_retries=0)
    raw = np.random.default_rng(0).integers(0, 5000, (2, *encoder.config.architecture.crop_zyx)).astype("<u2")
    expected = cf.embed_crops(encoder, raw, window=(100, 4000))
    window = {"window": [100, 4000]}
    for options in ({}, {"encoding_format": "float"}):
        reply = asks.embeddings.create(input=texts(raw), model=model.name, extra_body=window, **options)
        np.testing.assert_allclose([row.embedding for row in reply.data], expected, atol=1e-5)
        assert [row.index for row in reply.data] == [0, 1]
        assert reply.model == model.name
    with pytest.raises(openai.UnprocessableEntityError, match="input 0 is no base64"):
        asks.embeddings.create(input="a text", model=model.name)
    with pytest.raises(openai.NotFoundError, match="gpt"):
        asks.embeddings.create(input=texts(raw), model="gpt", extra_body=window)
    assert served.stop() == 0


def test_health_says_whether_the_service_is_ready(client):
    assert client.get("/health").status_code == 200 == client.get("/readyz").status_code
