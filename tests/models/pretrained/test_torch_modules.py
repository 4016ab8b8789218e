"""Encoders and detectors as torch modules: own preprocessing, copies, traces, trainings, timm's registry."""

import copy
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import canvas_fm as cf
from canvas_fm.data.volume.window import Window
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.files.shipped import DEFAULT_ENCODER
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.encoder.mae import MaskedAutoencoder
from canvas_fm.models.folder.network_config import ConvMixerConfig, DecoderConfig, EncoderConfig
from canvas_fm.models.load_model import Encoder, load, save, save_detector, save_encoder

CROP = (8, 16, 16)
UM = (4.0, 1.8, 1.8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    config = EncoderConfig(crop_zyx=CROP, patch_zyx=(2, 4, 4), dim=48, depth=2, heads=3)
    mae = MaskedAutoencoder(config, DecoderConfig(dim=24, depth=1, heads=3))
    path = tmp_path_factory.mktemp("models")
    save_encoder(path / "encoder", mae, voxel_um=UM, pool="centre")
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1))
    save_detector(path / "detector", net, voxel_um=UM, threshold=0.4, min_distance_um=8.0)
    return path


@pytest.fixture(params=["encoder", "detector"])
def model(folders, request):
    return load(folders / request.param)


@pytest.fixture
def encoder(folders):
    return load(folders / "encoder", kind="encoder")


@pytest.fixture
def crops():
    return torch.rand(3, 1, *CROP, generator=torch.Generator().manual_seed(1))


def test_a_model_is_its_net_with_its_own_pooling(encoder, crops):
    assert torch.equal(encoder(crops), encoder.net(crops, "centre"))
    assert torch.equal(encoder(crops[:, 0], pool="cls", layer=1), encoder.net(crops, "cls", 1))
    assert np.array_equal(cf.embed_crops(encoder, crops.numpy(), precision="fp32"), encoder(crops).numpy())


def test_features_and_head_are_the_whole(model, crops):
    features = model.forward_features(crops)
    torch.testing.assert_close(model.forward_head(features), model(crops))
    assert features.shape[-1 if isinstance(model, Encoder) else 1] == model.num_features


def test_raw_intensities_go_through_the_window_as_in_numpy(model):
    raw = np.random.default_rng(0).integers(0, 4000, (2, 1, *CROP)).astype(np.uint16)
    windows = [Window(100.0, 2000.0), Window(37.0, 3111.0)]
    expected = np.stack([window.apply(crop) for window, crop in zip(windows, raw, strict=True)])
    assert np.array_equal(model.preprocess(torch.from_numpy(raw), torch.tensor(windows)), expected)
    assert np.array_equal(model.preprocess(torch.from_numpy(raw[:1]), windows[0]), expected[:1])


def test_what_is_no_windowed_crop_is_refused(model, crops):
    with pytest.raises(CanvasError, match=r"crops are torch\.int16; raw intensities need"):
        model((crops * 1000).short())
    with pytest.raises(CanvasError, match=r"values in \[0, 1\]"):
        model(crops * 1000)
    with pytest.raises(CanvasError, match=r"\(3, 2, 8, 16, 16\); this \w+ takes \(n, 1, "):
        model(crops.expand(-1, 2, -1, -1, -1))
    with pytest.raises(CanvasError, match=r"window has shape \(2, 2\)"):
        model(crops, torch.tensor([[0, 1], [0, 1]]))
    with pytest.raises(CanvasError, match="window has no width"):
        model(crops, (5, 5))


def test_a_copy_and_a_pickle_give_the_same_numbers(model, crops):
    expected = model(crops)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(crops), expected)
        assert (other.sha256, other.edited, repr(other)) == (model.sha256, False, repr(model))
        next(iter(other.net.parameters())).add_(1.0)
        assert not torch.equal(other(crops), expected)
        assert torch.equal(model(crops), expected)


def test_a_copy_of_an_encoder_shares_its_weights_with_its_autoencoder(encoder):
    other = copy.deepcopy(encoder)
    assert other.mae.encoder is other.net
    assert not {name for name, _ in encoder.named_parameters() if "decoder" in name}
    assert {p.dtype for p in other.double().mae.parameters()} == {torch.float64}


def test_loaded_models_are_frozen_until_they_are_trained(model, crops):
    assert not model.training
    assert not model(crops).requires_grad
    model.train().requires_grad_()
    assert model.net.training
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(crops * 1.5 - 0.2).square().mean().backward()  # an augmentation may leave [0, 1]
    optimizer.step()
    assert model.edited
    assert "edited" in repr(model)


def test_changed_weights_do_not_pass_for_the_old_ones(folders, model, tmp_path):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(changed.net.parameters())).mul_(1.5)
    changed = pickle.loads(pickle.dumps(changed))
    volume = cf.Volume.from_array(np.arange(16**3, dtype=np.uint16).reshape(16, 16, 16), voxel_um=UM)
    use = partial(cf.embed, points_zyx=np.full((1, 3), 8.0)) if isinstance(model, Encoder) else cf.detect
    with pytest.raises(ModelMismatch, match=r"changed since it was loaded.*cf\.save"):
        use(changed, volume)
    with pytest.raises(CanvasError, match="encoder or detector that load gave, not a Sequential"):
        save(torch.nn.Sequential(changed), tmp_path / "whole")
    again = save(changed, tmp_path / "new")
    assert again.sha256 != model.sha256
    assert again.config.provenance["weights_of"] == model.sha256
    crops = torch.rand(1, 1, *CROP)
    assert torch.equal(again(crops), changed(crops))


TRACES = """
import sys, torch
import canvas_fm as cf
crops = torch.rand(3, 1, 8, 16, 16)
more = torch.rand(5, 1, 8, 16, 16)
for folder in sys.argv[1:]:
    model = cf.load(folder)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(whole(crops), model(crops)), folder
    shapes = {"crops": {0: torch.export.Dim("n")}}
    exported = torch.export.export(model, (crops,), dynamic_shapes=shapes, strict=False)
    torch.testing.assert_close(exported.module()(more), model(more))
"""


@pytest.mark.slow
def test_torch_compiles_and_exports_a_model_whole(folders):
    """In an interpreter of its own: dynamo cannot trace the checks of shapes that tests put around calls."""
    words = [sys.executable, "-c", TRACES, str(folders / "encoder"), str(folders / "detector")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_timm_makes_shipped_encoders(crops):
    from canvas_fm.models.pretrained import timm_models  # noqa: F401  (registers them)

    import timm  # isort: skip

    assert "canvas_fm.base-2" in timm.list_models("canvas_fm*", pretrained=True)
    model = timm.create_model("canvas_fm.base-5", pretrained=True)
    shipped = cf.load("base-5")
    assert timm.create_model("canvas_fm", pretrained=True).sha256 == cf.load(DEFAULT_ENCODER).sha256
    crops = torch.rand(2, 1, *shipped.config.architecture.crop_zyx)
    assert torch.equal(model(crops), shipped(crops))
    assert not torch.equal(timm.create_model("canvas_fm.base-5")(crops), shipped(crops))
    head = nn.Linear(model.num_features, 2)
    assert head(model(crops)).shape == (2, 2)
    with pytest.raises(CanvasError, match="canvas_fm has no classifier"):
        timm.create_model("canvas_fm", num_classes=3)
