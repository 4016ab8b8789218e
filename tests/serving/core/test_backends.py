"""The service with another backend: the same vectors, told in `info`, and int8 only where it was admitted."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.models.load_model import Encoder, load, save_encoder
from serving.protocol import npy

pytest.importorskip("openvino")
NPY = {"Content-Type": "application/x-npy"}


def embedded(client, crops: np.ndarray, query: str = "") -> np.ndarray:
    reply = client.post(f"/v1/embed{query}", content=npy.dump(crops), headers=NPY)
    assert reply.status_code == 200, reply.text
    return np.load(io.BytesIO(reply.content), allow_pickle=False)


@pytest.fixture
def quantised(model: Path, encoder: Encoder, tmp_path: Path) -> Path:
    """The tiny encoder with an int8 form whose figures pass for `mean` alone."""
    from canvas_fm.inference.backends.int8_check import Int8Check, PoolCheck, keep
    from canvas_fm.inference.backends.openvino import converted, save

    folder = tmp_path / "tiny"
    shutil.copytree(model, folder)
    good = PoolCheck(agreement=0.99, f1_fp32=0.9, f1_int8=0.901, f1_carried=0.9, f1_all=0.5)
    check = Int8Check(
        encoder_sha256=encoder.sha256,
        neighbours=10,
        pools={"mean": good, "cls": good.model_copy(update={"agreement": 0.5})},
        candidates=100,
        volumes=["a", "b"],
        calibration_volumes=["c"],
        calibration_crops=8,
        exact=False,
        versions={},
        files={},
    )
    copy = load(folder)
    keep(copy, check, lambda at: save(converted(copy), at / "encoder.xml"))
    return folder


def test_openvino_answers_as_torch_and_says_so(start, encoder: Encoder, crops) -> None:
    client = start(more={"backend": "openvino"})
    for pool in ("mean", "grid"):
        wanted = cf.embed_crops(encoder, crops, pool=pool)
        np.testing.assert_allclose(embedded(client, crops, f"?pool={pool}"), wanted, atol=1e-5)
    said = client.get("/v1/info").json()
    assert (said["backend"], said["precision"], said["int8"]) == ("openvino", "fp32", None)


def test_int8_is_served_where_it_was_admitted_and_info_tells_by_what(start, quantised, encoder, crops):
    client = start(more={"model": str(quantised), "backend": "openvino", "precision": "int8"})
    said = client.get("/v1/info").json()
    assert (said["backend"], said["precision"]) == ("openvino", "int8")
    assert said["int8"]["encoder_sha256"] == encoder.sha256 == said["sha256"]
    assert said["int8"]["pools"]["mean"] == {
        "admitted": True,
        "agreement": 0.99,
        "f1": 0.9,
        "f1_move": 0.001,
    }
    assert said["int8"]["pools"]["cls"]["admitted"] is False
    np.testing.assert_allclose(embedded(client, crops), cf.embed_crops(encoder, crops), atol=1e-5)
    for asked, part in (("pool=cls", "int8 is not admitted for tiny, pool cls"), ("layer=1", "layer 1 was")):
        reply = client.post(f"/v1/embed?{asked}", content=npy.dump(crops), headers=NPY)
        assert reply.status_code == 422
        assert part in reply.json()["error"]["message"]
        assert str(quantised.parent) not in reply.text


def test_int8_without_a_check_does_not_start(model: Path, volume_path: Path) -> None:
    from serving.core.models.model_host import Engine
    from serving.protocol.settings import ServiceSettings

    settings = ServiceSettings(model=str(model), backend="openvino", precision="int8")
    with pytest.raises(cf.CanvasError, match="int8 was not checked for tiny; run `canvas-fm quantise`"):
        Engine.load(settings)


def test_a_model_without_a_check_is_not_added_to_an_int8_service(start, quantised, tmp_path) -> None:
    from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
    from canvas_fm.models.encoder.vit import EncoderConfig

    architecture = EncoderConfig(crop_zyx=(4, 8, 8), patch_zyx=(1, 2, 2), dim=24, depth=1, heads=2)
    mae = MaskedAutoencoder(architecture, DecoderConfig(dim=12, depth=1, heads=2))
    save_encoder(tmp_path / "unchecked", mae, voxel_um=(4.0, 1.8, 1.8))
    settings = {"model": str(quantised), "backend": "openvino", "precision": "int8"}
    client = start(more=settings | {"roots": (str(tmp_path),)})
    body = json.dumps({"name": "more", "path": "unchecked"})
    reply = client.post("/v1/models", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422
    assert "int8 was not checked for unchecked" in reply.json()["error"]["message"]
