"""Encoders of signal and background: what a patch holds, the scale of each channel; one channel as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import canvas_fm as cf
from canvas_fm.errors import CanvasError
from canvas_fm.models.encoder.mae import MaskedAutoencoder, loss_target
from canvas_fm.models.encoder.vit import ViTEncoder, patch_scale, patch_variance, patchify, unpatchify
from canvas_fm.models.folder.model_config import DetectorConfig, ModelConfig
from canvas_fm.models.folder.network_config import DecoderConfig, EncoderConfig
from canvas_fm.models.load_model import load, save_encoder

TWO = EncoderConfig(crop_zyx=(4, 8, 8), patch_zyx=(1, 2, 2), dim=24, depth=1, heads=2, channels=2)
WEIGHTS = Path(cf.__file__).parent / "weights"


def crops(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_patch_holds_its_voxels_of_the_signal_and_then_those_of_the_background():
    given = crops()
    patches = patchify(given, (1, 2, 2))
    each = torch.cat([patchify(given[:, c : c + 1], (1, 2, 2)) for c in (0, 1)], dim=-1)
    assert torch.equal(patches, each)
    assert torch.equal(unpatchify(patches, (4, 4, 4), (1, 2, 2)), given)


def test_each_channel_is_seen_in_its_own_contrast():
    """A background of another offset and gain changes nothing; a signal of another shape does."""
    torch.manual_seed(0)
    net = ViTEncoder(TWO.model_copy(update={"intensity": "contrast"})).eval()
    given = crops()
    dimmer = torch.stack([given[:, 0], 0.4 * given[:, 1] + 0.3], dim=1)
    with torch.inference_mode():
        plain, shifted, turned = net(given), net(dimmer), net(given.flip(1))
    torch.testing.assert_close(shifted, plain, rtol=0, atol=2e-3)  # not 0: the least contrast is added
    assert (turned - plain).abs().max() > 0.05


def test_scale_and_variance_of_a_patch_are_those_of_its_channels():
    patches = patchify(crops(), (1, 2, 2))
    scale = patch_scale(patches, 2)
    for c, part in enumerate(patches.chunk(2, dim=-1)):
        own = patch_scale(part)
        for of_all, of_channel in zip(scale, own, strict=True):
            voxels = of_all.chunk(2, dim=-1)[c]
            torch.testing.assert_close(voxels, of_channel.expand_as(voxels))
    parts = [part.var(dim=-1, unbiased=False) for part in patches.chunk(2, dim=-1)]
    torch.testing.assert_close(patch_variance(patches, 2), (parts[0] + parts[1]) / 2)
    assert loss_target(patches, torch.arange(8)[None].expand(3, -1), "patch", 2).unit.shape == patches.shape


@pytest.mark.parametrize("targets", ["voxels", "patch"])
def test_what_is_masked_in_either_channel_has_no_influence(targets):
    torch.manual_seed(0)
    mae = MaskedAutoencoder(TWO, DecoderConfig(dim=12, depth=1, heads=2, targets=targets)).eval()
    given, visible = crops(1), torch.arange(0, 64, 3)[None]
    with torch.inference_mode():
        tokens = mae.encoder.tokens(given, visible)
        patches = patchify(given, TWO.patch_zyx)
        hidden = torch.ones(64, dtype=torch.bool).scatter(0, visible[0], False)
        patches[:, hidden] = 1 - patches[:, hidden]
        other = unpatchify(patches, TWO.grid_zyx, TWO.patch_zyx)
        assert torch.equal(mae.encoder.tokens(other, visible), tokens)
        assert mae(given, visible=visible).patches.shape == (1, 64, 8)


def test_raw_channels_go_through_their_own_windows(tmp_path):
    torch.manual_seed(0)
    encoder = save_encoder(tmp_path / "two", ViTEncoder(TWO), voxel_um=(4.0, 1.8, 1.8))
    raw = 1000 * crops()
    windows = torch.tensor([[100.0, 900.0], [0.0, 500.0]])
    by_hand = torch.stack([((raw[:, 0] - 100) / 800).clamp(0, 1), (raw[:, 1] / 500).clamp(0, 1)], dim=1)
    torch.testing.assert_close(encoder(raw, windows), encoder(by_hand))
    torch.testing.assert_close(encoder(raw, windows.expand(3, 2, 2)), encoder(by_hand))
    assert "2 channels" in repr(encoder)
    with pytest.raises(CanvasError, match=r"\(low, high\) of each of the 2 channels, or \(3, 2, 2\)"):
        encoder(raw, (100.0, 900.0))
    with pytest.raises(CanvasError, match=r"this encoder takes \(n, 2, 4, 8, 8\)"):
        encoder(by_hand[:, :1])
    with pytest.raises(ValidationError, match=r"1 \(signal\) or 2 \(signal and background\)"):
        EncoderConfig(channels=3)


def test_of_one_channel_all_is_written_as_before_there_were_two(tmp_path):
    """So that identity and config of a model trained today are those that an earlier version wrote."""
    shipped = sorted(path for path in WEIGHTS.iterdir() if (path / "config.json").is_file())
    kinds = {"encoder": ModelConfig, "detector": DetectorConfig}
    checked = 0
    for folder in shipped:
        raw = json.loads((folder / "config.json").read_text())
        if raw["kind"] == "encoder":
            assert ModelConfig.model_validate(raw).architecture.model_dump(mode="json") == raw["architecture"]
            checked += 1
        elif raw["kind"] in kinds:
            assert load(folder).sha256 == raw["sha256"]
            checked += 1
    assert checked >= 4
    one = EncoderConfig(crop_zyx=(4, 8, 8), patch_zyx=(1, 2, 2), dim=24, depth=1, heads=2)
    saved = save_encoder(tmp_path / "one", ViTEncoder(one), voxel_um=(4.0, 1.8, 1.8))
    assert "channels" not in json.loads((tmp_path / "one" / "config.json").read_text())["architecture"]
    assert load(tmp_path / "one").config == saved.config
    assert TWO.model_dump()["channels"] == 2
