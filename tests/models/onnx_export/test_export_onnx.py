"""Exported graphs in onnxruntime: torch's numbers on crops of real volumes, any batch, any box."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

import canvas_fm as cf
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.folder.network_config import (
    ConvMixerConfig,
    DescriptorsConfig,
    EncoderConfig,
    LocalContrastConfig,
)
from canvas_fm.models.load_model import load, save_detector, save_encoder
from canvas_fm.models.onnx_export import graph

onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime"
)
pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")

CROP, UM = (8, 16, 16), (4.0, 1.8, 1.8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An untrained encoder and detector, and their exports."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("onnx")
    config = EncoderConfig(crop_zyx=CROP, patch_zyx=(2, 4, 4), dim=48, depth=1, heads=3, intensity="contrast")
    save_encoder(path / "encoder", ViTEncoder(config), voxel_um=UM, pool="contrast")
    contrast = LocalContrastConfig(surround_zyx=(7, 5, 5))
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1, patch_zyx=(1, 2, 2), contrast=contrast))
    for norm in (each for each in net.modules() if isinstance(each, torch.nn.BatchNorm3d)):
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.1, 0.5)
    save_detector(path / "detector", net, voxel_um=UM, threshold=0.4, min_distance_um=8.0)
    return {kind: (load(path / kind), cf.export_onnx(load(path / kind), path / f"{kind}.onnx")) for kind in
            ("encoder", "detector")}  # fmt: skip


def run(path, crops, window):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"crops": crops, "window": window})[0]


@pytest.mark.parametrize("rows", [1, 7])
def test_an_encoder_takes_raw_crops_of_any_number(exported, rows):
    model, export = exported["encoder"]
    brain, cells, *_ = cf.sample("microglia")
    starts = np.round(cells.zyx[:rows]).astype(int).clip(0, np.subtract(brain.shape_zyx, CROP))
    crops = np.stack([brain.read(tuple(start), CROP) for start in starts]).astype(np.float32)[:, None]
    window = np.tile(np.float32(brain.window_by(model.config.window_rule)), (rows, 1))
    got = run(export.path, crops, window)
    assert got.shape == (rows, model.dim)
    expected = model(torch.from_numpy(crops), torch.from_numpy(window)).numpy()
    assert np.abs(got - expected).max() < 1e-5
    assert np.ptp(expected) > 0.1
    assert export.max_difference < 1e-5


@pytest.mark.parametrize("box", [(3, 4, 6), (40, 22, 26)])
def test_a_detector_takes_boxes_of_any_whole_number_of_patches(exported, box):
    model, export = exported["detector"]
    crops = np.random.default_rng(0).uniform(0, 3000, (2, 1, *box)).astype(np.float32)
    window = np.float32([[100, 2000], [300, 2500]])
    got = run(export.path, crops, window)
    expected = torch.sigmoid(model(torch.from_numpy(crops), torch.from_numpy(window))).numpy()
    assert got.shape == (2, *box)
    assert np.abs(got - expected).max() < 1e-5
    assert np.ptp(expected) > 1e-4


@pytest.mark.parametrize("kind", ["encoder", "detector"])
def test_the_graph_says_what_is_left_to_its_user(exported, kind):
    model, export = exported[kind]
    facts = onnxruntime.InferenceSession(export.path).get_modelmeta().custom_metadata_map
    assert facts["sha256"] == model.sha256
    config = json.loads(facts["canvas_fm_config"])
    assert config["voxel_um"] == list(UM)
    assert config["window_rule"] == {"kind": "percentiles", "low": 0.5, "high": 99.9}
    assert (config.get("pool"), config.get("threshold")) == (
        ("contrast", None) if kind == "encoder" else (None, 0.4)
    )


@pytest.mark.slow  # importing its checker takes ten seconds
@pytest.mark.parametrize("kind", ["encoder", "detector"])
def test_the_description_is_one_of_bioimage_io(exported, kind):
    spec = pytest.importorskip("bioimageio.spec", reason="bioimageio.spec is not installed")
    described = spec.load_description(exported[kind][1].description, format_version="latest")
    assert isinstance(described, spec.model.v0_5.ModelDescr), described.validation_summary.format()
    assert described.weights.onnx.opset_version == graph.OPSET


def test_the_description_names_the_graph_beside_it_and_a_detectors_sizes(exported):
    _, export = exported["detector"]
    about = yaml.safe_load(export.description.read_text(encoding="utf-8"))
    weights = about["weights"]["onnx"]
    assert (export.description.parent / weights["source"], weights["sha256"]) == (export.path, export.sha256)
    sizes = [axis["size"] for axis in about["inputs"][0]["axes"] if axis["type"] == "space"]
    assert sizes == [{"min": 4, "step": 1}, {"min": 8, "step": 2}, {"min": 8, "step": 2}]


def test_the_test_tensors_are_what_the_graph_gives(exported):
    for _, export in exported.values():
        crops, window, output = (
            np.load(export.path.with_suffix(f".{name}.npy")) for name in ("crops", "window", "output")
        )
        assert np.abs(run(export.path, crops, window) - output).max() < 1e-5


def test_the_documentation_has_the_section_on_validation_that_bioimage_io_asks_for(exported):
    for model, export in exported.values():
        text = export.path.with_suffix(".md").read_text(encoding="utf-8")
        assert text.startswith(f"# {model.name}")
        assert "## Validation\n\nBefore this graph was written onnxruntime gave torch's" in text
        assert f"to {export.max_difference:.2g} at most" in text


def test_descriptors_are_in_the_graph(tmp_path):
    torch.manual_seed(0)
    config = EncoderConfig(
        crop_zyx=CROP, patch_zyx=(2, 4, 4), dim=48, depth=1, heads=3, intensity="contrast",
        descriptors=DescriptorsConfig(components=8, voxel_um=UM),
    )  # fmt: skip
    model = save_encoder(tmp_path / "encoder", ViTEncoder(config), voxel_um=UM, pool="centre")
    export = cf.export_onnx(model, tmp_path / "encoder.onnx")
    crops, window = graph.example_rows(model, 4, seed=3)
    got = run(export.path, crops, window)
    assert got.shape == (4, model.dim) == (4, 48 + 8 + 35)
    expected = model(torch.from_numpy(crops), torch.from_numpy(window)).numpy()
    assert np.abs(got - expected).max() < 1e-5


def test_signal_and_background_have_a_window_each(tmp_path):
    torch.manual_seed(0)
    config = EncoderConfig(crop_zyx=CROP, patch_zyx=(2, 4, 4), dim=24, depth=1, heads=2, channels=2)
    model = save_encoder(tmp_path / "two", ViTEncoder(config), voxel_um=UM)
    export = cf.export_onnx(model, tmp_path / "two.onnx")
    crops = np.random.default_rng(0).uniform(0, 3000, (3, 2, *CROP)).astype(np.float32)
    window = np.float32([[[100, 2000], [0, 900]]] * 3)
    expected = model(torch.from_numpy(crops), torch.from_numpy(window)).numpy()
    assert np.abs(run(export.path, crops, window) - expected).max() < 1e-5
    assert np.abs(run(export.path, crops, window[:, ::-1].copy()) - expected).max() > 1e-3


def test_what_differs_from_torch_is_not_written(exported, tmp_path, monkeypatch):
    wrong = graph.RawDetector.forward
    monkeypatch.setattr(
        graph.RawDetector, "forward", lambda *args: wrong(*args) * (1 if torch.jit.is_tracing() else 1.001)
    )
    with pytest.raises(CanvasError, match=r"differs from torch by .*less than 1e-05"):
        cf.export_onnx(exported["detector"][0], tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_nothing_unasked_and_leaves_the_model_alone(exported, tmp_path):
    model, export = exported["encoder"]
    with pytest.raises(CanvasError, match="is there already; give --overwrite"):
        cf.export_onnx(model, export.path)
    with pytest.raises(CanvasError, match=r"give a file that ends in \.onnx"):
        cf.export_onnx(model, tmp_path / "model.pt")
    tuned = load(model.path).train()
    with torch.no_grad():
        tuned.net.cls_token.add_(1)
    with pytest.raises(ModelMismatch, match="its sha256 is not theirs"):
        cf.export_onnx(tuned, tmp_path / "x.onnx")
    assert not model.edited
