"""Backends: the same vectors whatever computes them, and a sentence where one cannot."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.inference.backends.cuda_graphs import SIZES
from canvas_fm.inference.backends.openvino import lowered_instruction_set, openvino
from canvas_fm.inference.embed.embed import embed, embed_crops, embed_to_store
from canvas_fm.inference.embed.encoder_runner import Runner
from canvas_fm.models.encoder.vit import DENSE, POOLS, ViTEncoder
from canvas_fm.models.folder.network_config import DescriptorsConfig
from canvas_fm.models.load_model import load, save, save_encoder

from ..conftest import CROP, make_encoder  # isort: skip

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.random.default_rng(3).random((9, *CROP), np.float32)


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest distance, as a share of the vector's length."""
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    found, wanted = found.reshape(len(found), -1), wanted.reshape(len(wanted), -1)
    return float((np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


@pytest.mark.parametrize("layer", [None, 0, 1])
@pytest.mark.parametrize("pool", [*POOLS, *DENSE])
def test_openvino_gives_the_vectors_of_torch(encoder, crops, pool, layer):
    pytest.importorskip("openvino")
    asked = {"pool": pool, "layer": layer}
    wanted = embed_crops(encoder, crops, **asked)
    assert off(embed_crops(encoder, crops, backend="openvino", **asked), wanted) < 1e-5
    assert off(embed_crops(encoder, crops, backend="openvino", batch=2, **asked), wanted) < 1e-5
    assert off(embed_crops(encoder, crops, backend="openvino", precision="bf16", **asked), wanted) < 0.05


def test_openvino_has_descriptors_behind_every_pooling_and_behind_no_patch(tmp_path, crops):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    config = make_encoder(tmp_path / "plain").config.architecture.model_copy(
        update={"descriptors": DescriptorsConfig(components=3, radii_um=(4, 9), voxel_um=(4.0, 1.8, 1.8))}
    )
    encoder = save_encoder(tmp_path / "described", ViTEncoder(config), voxel_um=(4.0, 1.8, 1.8))
    for pool in ("mean", "centre", "tokens"):
        wanted = embed_crops(encoder, crops, pool=pool)
        assert off(embed_crops(encoder, crops, pool=pool, backend="openvino"), wanted) < 1e-5


@pytest.mark.parametrize(
    ("setting", "refused"), [("AVX2", True), ("avx2_vnni", True), ("AVX512_CORE", False), ("", False)]
)
def test_openvino_is_refused_below_the_processors_instruction_set(monkeypatch, setting, refused):
    pytest.importorskip("openvino")
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", setting)
    assert (lowered_instruction_set() == f"ONEDNN_MAX_CPU_ISA={setting}") == refused
    if refused:
        with pytest.raises(CanvasError, match="unset it, or take the backend torch"):
            openvino()
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    assert lowered_instruction_set() is None


def test_crops_points_and_store_give_the_same_with_openvino(encoder, volume, points, tmp_path):
    pytest.importorskip("openvino")
    some = type(points)(points.zyx[:20], {}, {})
    wanted = embed(encoder, volume, some.zyx)
    assert off(embed(encoder, volume, some.zyx, backend="openvino"), wanted) < 1e-5
    store = embed_to_store(encoder, volume, some, tmp_path / "x.emb.zarr", backend="openvino")
    assert off(store.vectors, wanted) < 1e-5
    assert store.attributes["backend"] == "openvino"
    # The backend is no other input: both agree to 1e-5, so what one began the other may go on with.
    again = embed_to_store(encoder, volume, some, tmp_path / "x.emb.zarr", backend="torch")
    np.testing.assert_array_equal(again.vectors, store.vectors)


def test_a_graph_is_compiled_once_and_threads_take_turns(encoder, crops):
    pytest.importorskip("openvino")
    wanted = embed_crops(encoder, crops, backend="openvino", batch=1)
    with ThreadPoolExecutor(4) as threads:
        runner = Runner(encoder, None, None, "fp32", None, "openvino")
        found = list(threads.map(lambda i: runner(crops[i : i + 1, None]), range(len(crops))))
    np.testing.assert_array_equal(np.concatenate(found), wanted)
    assert len([key for key in encoder._kept if key[:3] == ("openvino", None, None)]) <= 2  # fp32, bf16


@pytest.mark.slow
def test_openvino_reports_to_nobody(tmp_path):
    """Its conversion sends statistics unless stopped; in a process and with a home of its own."""
    import os
    import subprocess

    pytest.importorskip("openvino")
    make_encoder(tmp_path / "encoder")
    code = (
        "import sys, numpy as np\nimport canvas_fm as cf\n"
        f"encoder = cf.load({str(tmp_path / 'encoder')!r})\n"
        "cf.embed_crops(encoder, np.zeros((1, 8, 16, 16), 'f4'), backend='openvino')\n"
        "assert sys.modules['openvino_telemetry'] is None"
    )
    environment = os.environ | {"HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert not (tmp_path / "home" / "intel").exists()


def test_without_the_extra_it_is_named(encoder, crops, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        MissingExtra, match=r"backend openvino needs openvino: pip install 'canvas-fm\[cpu\]'"
    ):
        embed_crops(encoder, crops, backend="openvino")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"backend": "tensorrt"}, "backend is 'tensorrt'; give one of torch, cuda-graphs, openvino"),
        ({"backend": "cuda-graphs", "device": "cpu"}, "runs on an NVIDIA GPU, the device is 'cpu'; give"),
        ({"backend": "openvino", "device": "cuda:1"}, "runs on the CPU, device 'cuda:1' was given; leave"),
        ({"precision": "int8"}, "backend torch has no int8; give backend openvino"),
        ({"precision": "int8", "backend": "openvino"}, "int8 was not checked for encoder; run `canvas-fm qu"),
        ({"precision": "fp16"}, "precision 'fp16' is not known; give one of auto, fp32, bf16"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, crops, asked, sentence):
    pytest.importorskip("openvino")
    encoder = make_encoder(tmp_path / "encoder" / "encoder")
    with pytest.raises(CanvasError) as problem:
        embed_crops(encoder, crops, **asked)
    assert sentence in str(problem.value)


def test_nan_from_a_compiled_graph_is_refused_too(tmp_path, crops):
    pytest.importorskip("openvino")
    encoder = make_encoder(tmp_path / "encoder")
    with torch.no_grad():
        encoder.net.norm.bias.fill_(float("nan"))
    encoder = save(encoder, tmp_path / "broken")
    with pytest.raises(
        CanvasError, match="gave NaN or infinite values for 9 of 9 crops; its weights are of no"
    ):
        embed_crops(encoder, crops, backend="openvino")


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_give_the_vectors_of_torch(tmp_path, precision):
    """For batches at, under and over the recorded sizes, and again with other crops in the same graph."""
    make_encoder(tmp_path / "encoder")
    encoder = load(tmp_path / "encoder", device="cuda")
    for n in (1, SIZES[0], SIZES[0] + 1, SIZES[-1] + 3, 5):
        crops = np.random.default_rng(n).random((n, *CROP), np.float32)
        same = {"precision": precision, "batch": n}
        wanted = embed_crops(encoder, crops, **same)
        assert off(embed_crops(encoder, crops, backend="cuda-graphs", **same), wanted) < 0.02
