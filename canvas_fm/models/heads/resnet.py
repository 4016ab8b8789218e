"""A 3D ResNet classifier of crops, the field's usual baseline.

As the one of cellfinder (Tyson et al. 2021), a ResNet-18 (He et al. 2016) in three dimensions; `width` 64
is its size, smaller ones are for a CPU.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from canvas_fm.files.option_sets import FrozenModel


class ResNetConfig(FrozenModel):
    """Sizes of the net: channels of the first stage, doubled in each further one, and blocks a stage."""

    crop_zyx: tuple[int, int, int] = (16, 32, 32)
    width: int = Field(default=16, ge=1)
    blocks: tuple[int, ...] = Field(default=(2, 2, 2, 2), min_length=1)
    channels: int = Field(default=1, ge=1)


class BasicBlock(nn.Module):
    """Residual block: two 3 × 3 × 3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm3d(out_channels)
        self.second = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm3d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm3d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class ResNet3D(nn.Module):
    """Crops (n, channels, z, y, x) in [0, 1] to the logit of being a cell (n,).

    The stem halves y and x only: crops of anisotropic voxels are flat. Every further stage halves all axes.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Sequential(
            nn.Conv3d(config.channels, width, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(),
        )
        stages, in_channels = [], width
        for stage, count in enumerate(config.blocks):
            out_channels = width * 2**stage
            for number in range(count):
                stages.append(BasicBlock(in_channels, out_channels, stride=2 if stage and not number else 1))
                in_channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(in_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):  # each block begins as its shortcut
                nn.init.zeros_(module.second_norm.weight)

    def forward(self, crops: Float[Tensor, "n c z y x"]) -> Float[Tensor, " n"]:
        features = self.stages(self.stem(crops))
        return self.head(torch.mean(features, dim=(2, 3, 4)))[:, 0]
