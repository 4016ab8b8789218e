"""The net plane by plane gives what it gives layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from canvas_fm.models.detector import convmixer_planes
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.detector.convmixer_planes import features_by_planes, heat_by_planes
from canvas_fm.models.folder.network_config import ConvMixerConfig, LocalContrastConfig

PLAIN = ConvMixerConfig(dim=8, depth=3)
CONFIGS = [
    PLAIN,
    ConvMixerConfig(dim=8, depth=1, kernel_zyx=(1, 3, 5)),
    ConvMixerConfig(dim=8, depth=2, kernel_zyx=(5, 3, 3), patch_zyx=(2, 4, 4), channels=2),
    ConvMixerConfig(dim=8, depth=2, contrast=LocalContrastConfig(width=8.0, surround_zyx=(5, 3, 3))),
]


def trained(config: ConvMixerConfig) -> HeatMapNet:
    """A net whose batch norms do something, with heat far from one value."""
    torch.manual_seed(0)
    net = HeatMapNet(config).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm3d):
            for values in (part.weight, part.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (part.bias, part.running_mean):
                nn.init.normal_(values, std=0.3)
    nn.init.normal_(net.head.weight, std=0.5)
    nn.init.zeros_(net.head.bias)
    return net.requires_grad_(False)


def boxes(config: ConvMixerConfig) -> Iterator[torch.Tensor]:
    """Volumes of fewer planes than the kernel, of as many, and of more than one step."""
    for planes in (1, 2, 3, 11):
        size = [n * p for n, p in zip((planes, 3, 5), config.patch_zyx, strict=True)]
        yield torch.rand(config.channels, *size)


@pytest.mark.parametrize("bytes_", [1, 3 * 15 * 8 * 4, 1 << 20])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_planes_give_what_whole_boxes_give(
    config: ConvMixerConfig, bytes_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convmixer_planes, "_BYTES", bytes_)
    net = trained(config)
    for box in boxes(config):
        with torch.inference_mode():
            features, heat = net.features(box[None])[0], torch.sigmoid(net(box[None])[0])
        assert heat.std() > 0.01
        torch.testing.assert_close(features_by_planes(net, box), features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heat_by_planes(net, box), heat, rtol=1e-4, atol=1e-5)


def test_bf16_loses_no_more_than_autocast_does() -> None:
    net, box = trained(PLAIN), torch.rand(1, 6, 16, 16)
    with torch.inference_mode():
        heat = torch.sigmoid(net(box[None])[0])
        with torch.autocast("cpu", torch.bfloat16):
            cast = torch.sigmoid(net(box[None])[0].float())
    found = heat_by_planes(net, box, torch.bfloat16)
    assert 0 < (found - heat).abs().mean() < 2 * (cast - heat).abs().mean() + 1e-3


def test_boxes_that_are_not_whole_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="not whole patches"):
        heat_by_planes(trained(PLAIN), torch.rand(1, 4, 18, 16))
