"""The 3D ResNet against the same net written out in torch's functions, layer by layer."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from canvas_fm.models.heads.resnet import BasicBlock, ResNet3D, ResNetConfig

SMALL = ResNetConfig(width=3, blocks=(2, 1, 2), channels=2)
STRIDES = {"stages.0": 1, "stages.1": 1, "stages.2": 2, "stages.3": 2, "stages.4": 1}


def randomised(config: ResNetConfig) -> ResNet3D:
    """A net for use, all its weights and statistics drawn anew so that no part of it is a constant."""
    torch.manual_seed(0)
    net = ResNet3D(config).eval()
    for name, values in net.state_dict().items():
        if values.is_floating_point():
            values.copy_(torch.rand_like(values) + 0.5 if "running_var" in name else torch.randn_like(values))
    return net


def written_out(state: dict[str, Tensor], x: Tensor) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        mean, variance, weight, bias = (part.view(1, -1, 1, 1, 1) for part in parts)
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    x = F.conv3d(x, state["stem.0.weight"], stride=(1, 2, 2), padding=(1, 2, 2))
    x = norm(x, "stem.1").clamp(min=0)
    for block, stride in STRIDES.items():
        inner = F.conv3d(x, state[f"{block}.first.weight"], stride=stride, padding=1)
        inner = norm(inner, f"{block}.first_norm").clamp(min=0)
        inner = norm(F.conv3d(inner, state[f"{block}.second.weight"], padding=1), f"{block}.second_norm")
        if f"{block}.shortcut.0.weight" in state:
            x = norm(F.conv3d(x, state[f"{block}.shortcut.0.weight"], stride=stride), f"{block}.shortcut.1")
        x = (inner + x).clamp(min=0)
    return x.mean(dim=(2, 3, 4)) @ state["head.weight"][0] + state["head.bias"]


def test_it_is_the_net_written_out() -> None:
    net, crops = randomised(SMALL), torch.rand(3, 2, 5, 16, 18)
    with torch.inference_mode():
        expected = written_out(net.state_dict(), crops)
        torch.testing.assert_close(net(crops), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert net.config == SMALL
    shortcuts = {name.split(".shortcut")[0] for name in net.state_dict() if ".shortcut." in name}
    assert shortcuts == {"stages.2", "stages.3"}
    of_convolutions = ("stem.0.bias", "first.bias", "second.bias", "shortcut.0.bias")
    assert not any(name.endswith(of_convolutions) for name in net.state_dict())
    assert [net.state_dict()[f"{block}.first.weight"].shape[0] for block in STRIDES] == [3, 3, 6, 12, 12]


def test_each_block_begins_as_its_shortcut_and_convolutions_as_he_drew_them() -> None:
    torch.manual_seed(0)
    net = ResNet3D(ResNetConfig(width=32, blocks=(1, 1)))
    for block in net.stages:
        assert isinstance(block, BasicBlock)
        assert not block.second_norm.weight.any()
        assert bool((block.first_norm.weight == 1).all())
        spread = float(block.first.weight.detach().std())
        assert spread == pytest.approx(math.sqrt(2 / (27 * block.first.out_channels)), rel=0.05)


def test_sizes_that_no_net_has_are_refused() -> None:
    assert ResNetConfig().model_dump() == {
        "crop_zyx": (16, 32, 32), "width": 16, "blocks": (2, 2, 2, 2), "channels": 1,
    }  # fmt: skip
    for wrong in ({"width": 0}, {"blocks": ()}, {"channels": 0}, {"depth": 18}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            ResNetConfig(**wrong)
    with pytest.raises(ValidationError, match="frozen"):
        ResNetConfig().width = 3  # type: ignore[misc]
