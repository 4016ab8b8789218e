"""An encoder of signal and background over HTTP: crops of both channels, and what is expected of others."""

from __future__ import annotations

import base64
import io
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from canvas_fm.inference.embed.embed import embed_crops
from canvas_fm.models.encoder.vit import EncoderConfig, ViTEncoder
from canvas_fm.models.load_model import save_encoder
from serving.protocol import npy

from ..conftest import CROP, VOXEL_UM, end_shared

NPY = {"Content-Type": npy.MEDIA_TYPE}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    torch.manual_seed(0)
    config = EncoderConfig(crop_zyx=CROP, patch_zyx=(2, 4, 4), dim=24, depth=1, heads=2, channels=2)
    return save_encoder(tmp_path_factory.mktemp("two") / "both", ViTEncoder(config), voxel_um=VOXEL_UM)


@pytest.fixture(scope="module")
def served(two, begin_service):
    stack = ExitStack()
    yield begin_service(stack, more={"model": str(two.path)})
    end_shared(stack)


def test_crops_of_both_channels_give_the_numbers_of_python(two, served):
    crops = np.random.default_rng(0).random((5, 2, *CROP), np.float32)
    expected = embed_crops(two, crops)
    reply = served.post("/v1/embed", content=npy.dump(crops), headers=NPY)
    assert reply.status_code == 200, reply.text
    np.testing.assert_allclose(np.load(io.BytesIO(reply.content)), expected, rtol=1e-5, atol=1e-6)
    texts = [base64.b64encode(crop.tobytes()).decode() for crop in crops]
    data = served.post("/v1/embeddings", json={"input": texts}).json()["data"]
    np.testing.assert_allclose([row["embedding"] for row in data], expected, rtol=1e-5, atol=1e-6)
    (model,) = served.get("/v1/models").json()["models"]
    assert model["architecture"]["channels"] == 2


def test_it_says_which_channels_it_expects(served):
    expected = (
        f"this encoder takes (n, 2, {', '.join(map(str, CROP))}), the channels being signal and background"
    )
    for shape in ((5, 1, *CROP), (5, *CROP), (5, 3, *CROP)):
        reply = served.post("/v1/embed", content=npy.dump(np.zeros(shape, np.float32)), headers=NPY)
        assert reply.status_code == 422
        assert expected in reply.json()["error"]["message"]
    raw = npy.dump(np.zeros((5, 2, *CROP), np.uint16))
    reply = served.post("/v1/embed?window=0,100", content=raw, headers=NPY)
    assert reply.status_code == 422
    assert "has a window of its own" in reply.json()["error"]["message"]


def test_a_registered_volume_is_looked_at_and_not_embedded(served):
    points = {"volume": "cube", "points_zyx": [[10, 20, 20]]}
    reply = served.post("/v1/embed/points", json=points)
    assert reply.status_code == 422
    assert "takes signal and background; the volume 'cube' is one channel" in reply.json()["error"]["message"]
    place = {"volume": "cube", "z": 10, "y": 20, "x": 20, "size": "1,8,8"}
    assert served.get("/v1/crop", params=place).status_code == 200
