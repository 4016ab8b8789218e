"""Model folders: what is saved comes back, and what was changed is refused with a sentence."""

import hashlib
import json
import random
import shutil

import pytest
import torch

from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.folder.network_config import AmplitudeConfig, RelativeConfig
from canvas_fm.models.load_model import load, model_sha256, save, save_again, save_detector, save_encoder

SMALL = EncoderConfig(crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=48, depth=2, heads=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    mae = MaskedAutoencoder(SMALL, DecoderConfig(dim=24, depth=1, heads=3))
    path = tmp_path_factory.mktemp("model") / "encoder"
    save_encoder(path, mae, voxel_um=(4.0, 1.8, 1.8), pool="centre", provenance={"volumes": ["a"]})
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "encoder")


def test_what_is_saved_comes_back(tmp_path):
    mae = MaskedAutoencoder(SMALL, DecoderConfig(dim=24, depth=1, heads=3)).eval()
    save_encoder(tmp_path / "m", mae, voxel_um=(4.0, 1.8, 1.8), pool="cls")
    encoder = load(tmp_path / "m")
    crops = torch.rand(2, 1, 8, 16, 16)
    visible = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(encoder.net(crops), mae.encoder(crops, "cls"), rtol=0, atol=0)
        made = encoder.mae(crops, visible=visible).patches
        torch.testing.assert_close(made, mae(crops, visible=visible).patches, rtol=0, atol=0)
    assert (encoder.config.pool, encoder.config.voxel_um) == ("cls", (4.0, 1.8, 1.8))
    assert not any(p.requires_grad for p in encoder.mae.parameters())


def test_a_folder_of_another_kind_names_what_was_expected(folder):
    with pytest.raises(ModelMismatch, match="says kind 'refiner'; encoder or detector was expected"):
        load("refiner-microglia")
    with pytest.raises(ModelMismatch, match="says kind 'encoder'; a detector was expected"):
        load(folder, kind="detector")


@pytest.mark.parametrize(
    "scores",
    [
        {"amplitude": AmplitudeConfig(sigma_um=2.5, weight=0.5)},
        {"relative": RelativeConfig(weight=0.5, least=0.1)},
    ],
)
def test_a_detector_keeps_every_setting_when_it_is_saved_again(tmp_path, scores):
    settings = {
        "voxel_um": (5.0, 1.5, 1.6), "threshold": 0.3, "min_distance_um": 7.0, "smooth_um": 2.0,
        "window_rule": WindowRule("median", 0.0, 8.0), **scores,
    }  # fmt: skip
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    first = save_detector(tmp_path / "a", net, **settings, provenance={"recipe": "r"})
    again = save(first, tmp_path / "b")
    for name, value in settings.items():
        assert getattr(first.config, name) == getattr(again.config, name) == value, name
    assert again.config.provenance == {"recipe": "r", "weights_of": first.sha256}
    assert again.config.architecture == first.config.architecture


def test_identity_is_of_config_and_weights(folder, tmp_path):
    raw = json.loads((folder / "config.json").read_text())
    assert load(folder).sha256 == raw["sha256"] == model_sha256(raw)
    assert load(shutil.copytree(folder, tmp_path / "elsewhere")).sha256 == raw["sha256"]
    assert model_sha256(raw | {"pool": "mean"}) != raw["sha256"]


def test_a_missing_decoder_is_a_sentence_only_when_reconstructing(copy):
    (copy / "decoder.safetensors").unlink()
    encoder = load(copy)
    assert encoder.net(torch.rand(1, 1, 8, 16, 16)).shape == (1, 48)
    with pytest.raises(CanvasError, match=r"has no decoder\.safetensors, so it cannot reconstruct"):
        _ = encoder.mae


@pytest.mark.parametrize("name", ["model.safetensors", "decoder.safetensors", "config.json"])
def test_no_flipped_bit_goes_unseen(copy, name):
    chosen = random.Random(0)
    original = (copy / name).read_bytes()
    for _ in range(40):
        damaged = bytearray(original)
        damaged[chosen.randrange(len(damaged))] ^= 1 << chosen.randrange(8)
        (copy / name).write_bytes(damaged)
        with pytest.raises(CanvasError):
            load(copy)
    for damaged in (original[:-1], original[: len(original) // 2], b"", original + b"\0"):
        (copy / name).write_bytes(damaged)
        with pytest.raises(CanvasError):
            load(copy)
    (copy / name).write_bytes(original)
    load(copy)


def test_patch_targets_travel_with_the_folder(tmp_path):
    mae = MaskedAutoencoder(SMALL, DecoderConfig(dim=24, depth=1, heads=3, targets="patch")).eval()
    encoder = save_encoder(tmp_path / "m", mae, voxel_um=(4.0, 1.8, 1.8))
    assert encoder.config.decoder.masked_statistics == "mean and deviation of each hidden patch"
    crops, visible = torch.rand(2, 1, 8, 16, 16), torch.arange(16).expand(2, -1)
    with torch.no_grad():
        made = encoder.mae(crops, visible=visible).patches
        torch.testing.assert_close(made, mae(crops, visible=visible).patches, rtol=0, atol=0)
    again = save_again(encoder, tmp_path / "half")
    assert again.mae.decoder_config.targets == "patch"


def test_a_folder_from_before_there_were_targets_keeps_its_identity(copy):
    resign(copy, lambda raw: raw["decoder"].pop("targets"))
    raw = json.loads((copy / "config.json").read_text())
    encoder = load(copy)
    assert encoder.sha256 == raw["sha256"] == model_sha256(raw)
    assert (encoder.mae.decoder_config.targets, encoder.config.decoder.masked_statistics) == ("voxels", None)


def resign(copy, change):
    raw = json.loads((copy / "config.json").read_text())
    change(raw)
    raw["sha256"] = model_sha256(raw)
    (copy / "config.json").write_text(json.dumps(raw, indent=1) + "\n")


def test_an_unknown_key_is_refused_by_name(copy):
    resign(copy, lambda raw: raw.update(colour="blue"))
    with pytest.raises(CanvasError, match="the key 'colour', which this version does not know"):
        load(copy)


def test_another_class_of_model_is_refused(copy):
    resign(copy, lambda raw: raw.update(kind="segmenter"))
    with pytest.raises(ModelMismatch, match="kind 'segmenter'"):
        load(copy)


def test_weights_of_another_architecture_are_refused(copy):
    resign(copy, lambda raw: raw["architecture"].update(depth=3))
    with pytest.raises(ModelMismatch, match="does not fit the architecture"):
        load(copy)


def test_missing_folder_config_and_weights_are_sentences(copy, tmp_path):
    with pytest.raises(CanvasError, match=r"no model at .*none is shipped by that name"):
        load(tmp_path / "nowhere")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CanvasError, match=r"model\.safetensors is missing"):
        load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(CanvasError, match=r"it has no config\.json"):
        load(copy)


def test_half_precision_folders_load_as_float32(tmp_path):
    mae = MaskedAutoencoder(SMALL, DecoderConfig(dim=24, depth=1, heads=3)).eval()
    save_encoder(tmp_path / "half", mae, voxel_um=(4.0, 1.8, 1.8), dtype=torch.float16)
    encoder = load(tmp_path / "half")
    assert next(encoder.net.parameters()).dtype == torch.float32
    crops = torch.rand(1, 1, 8, 16, 16)
    torch.testing.assert_close(encoder.net(crops), mae.encoder(crops), rtol=1e-2, atol=1e-2)


def test_an_encoder_is_written_again_at_half_the_size(tmp_path):
    mae = MaskedAutoencoder(SMALL, DecoderConfig(dim=24, depth=1, heads=3)).eval()
    settings = {"voxel_um": (4.0, 1.8, 1.8), "pool": "centre", "provenance": {"step": 7}}
    whole = save_encoder(tmp_path / "whole", mae, **settings)
    half = save_again(whole, tmp_path / "half")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    for name, weight in half.net.state_dict().items():
        assert torch.equal(weight, whole.net.state_dict()[name].half().float())
    config = half.config
    assert config.provenance["weights_of"] == whole.sha256 != half.sha256
    assert (config.provenance["step"], config.pool, config.voxel_um) == (7, "centre", (4.0, 1.8, 1.8))
    data = (tmp_path / "half" / "model.safetensors").read_bytes()
    assert config.weights["model.safetensors"] == hashlib.sha256(data).hexdigest()
    assert half.mae.decoder_config == mae.decoder_config


def test_replacing_a_folder_leaves_one_whole_folder(copy):
    mae = MaskedAutoencoder(SMALL, DecoderConfig(dim=24, depth=1, heads=3))
    before = load(copy).sha256
    after = save_encoder(copy, mae, voxel_um=(4.0, 1.8, 1.8)).sha256
    assert load(copy).sha256 == after != before
    assert sorted(p.name for p in copy.parent.iterdir()) == ["encoder"]


def test_what_is_made_of_an_encoder_is_made_once_until_it_is_forgotten(folder):
    encoder, made = load(folder), []
    for _ in range(2):
        assert encoder.kept("graph", lambda: made.append(1) or len(made)) == 1
    encoder.forget()
    assert encoder.kept("graph", lambda: made.append(1) or len(made)) == 2


def test_the_window_rule_and_the_pooling_are_saved_and_saved_again(tmp_path):
    rule = WindowRule("percentiles", 2, 98)
    net = MaskedAutoencoder(SMALL, DecoderConfig(dim=24, depth=1, heads=3))
    saved = save_encoder(tmp_path / "a", net, voxel_um=(4.0, 1.8, 1.8), window_rule=rule, pool="contrast")
    for encoder in (saved, save_again(saved, tmp_path / "b")):
        assert (encoder.config.window_rule, encoder.config.pool) == (rule, "contrast")
