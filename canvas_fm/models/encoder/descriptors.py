"""Descriptors of a crop in addition to its tokens: principal components, brightness, shape."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from canvas_fm.models.folder.network_config import EncoderConfig, ball_voxels, centre_offsets_um

_LEAST_CONTRAST = 0.005  # as where the encoder itself divides by a crop's contrast
_FLOOR = 0.005  # of the window, so that what is black has a logarithm
_TINY = 1e-6


class Descriptors(nn.Module):
    """Crops to numbers that no training of the tokens changes, each of mean 0 where they were fitted.

    Principal components keep what a net that was trained on turned and mirrored views forgets: how a cell
    lies. Brightness is what dividing by a crop's contrast takes out. Untrained, the components are random
    directions.
    """

    components: Tensor
    mean: Tensor
    scale: Tensor
    offsets: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        settings = config.descriptors
        assert settings is not None
        directions = torch.empty(settings.components, int(np.prod(config.crop_zyx)))
        self.register_buffer("components", nn.init.orthogonal_(directions))
        self.register_buffer("mean", torch.zeros(settings.numbers))
        self.register_buffer("scale", torch.ones(settings.numbers))
        balls = ball_voxels(config.crop_zyx, settings)
        shells = [np.setdiff1d(outer, inner) for inner, outer in pairwise(balls)]
        self._balls = [f"ball_{number}" for number in range(len(balls))]
        self._shells = [f"shell_{number}" for number in range(len(shells))]
        for name, index in zip((*self._balls, *self._shells), (*balls, *shells), strict=True):
            self.register_buffer(name, torch.from_numpy(index), persistent=False)
        offsets = centre_offsets_um(config.crop_zyx, settings.voxel_um)[balls[-2]]
        self.register_buffer("offsets", torch.from_numpy(offsets).float(), persistent=False)

    def forward(self, crops: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b numbers"]:
        """Descriptors of windowed crops."""
        return (self.raw(crops) - self.mean) * self.scale

    def raw(self, crops: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b numbers"]:
        """Components, logarithms of brightness, and shape, before mean and scale."""
        voxels = crops.flatten(1)
        components = F.linear(contrast(voxels), self.components)
        return torch.cat([components, self._brightness(voxels), self._shape(voxels)], dim=1)

    def _brightness(self, voxels: Float[Tensor, "b v"]) -> Float[Tensor, "b numbers"]:
        values = []
        for name in self._balls:
            ball = voxels[:, self.get_buffer(name)]
            values += [ball.mean(dim=1), ball.amax(dim=1), ball.std(dim=1, correction=0), ball.amin(dim=1)]
        values += [voxels[:, self.get_buffer(name)].mean(dim=1) for name in self._shells]
        values += [voxels.mean(dim=1), voxels.amax(dim=1), voxels.std(dim=1, correction=0)]
        return (torch.stack(values, dim=1).clamp_min(0) + _FLOOR).log()

    def _shape(self, voxels: Float[Tensor, "b v"]) -> Float[Tensor, "b 8"]:
        """Size, offset of the centre of mass, and extents, the same turned in y, x."""
        background = voxels[:, self.get_buffer(self._shells[-1])].mean(dim=1, keepdim=True)
        above = (voxels[:, self.get_buffer(self._balls[-2])] - background).clamp_min(0)
        # Voxels that would hold as much, all alike: no threshold that rounding could put a voxel across.
        size = above.sum(dim=1).square() / above.square().sum(dim=1).clamp_min(_TINY)
        weight = above / above.sum(dim=1, keepdim=True).clamp_min(_TINY)
        z, y, x = self.offsets.unbind(dim=1)
        centre = weight @ self.offsets
        products = torch.stack([z * z, y * y, x * x, y * x], dim=1)
        zz, yy, xx, yx = (weight @ products).unbind(dim=1)
        cz, cy, cx = centre.unbind(dim=1)
        zz, yy, xx, yx = zz - cz * cz, yy - cy * cy, xx - cx * cx, yx - cy * cx
        middle, apart = (yy + xx) / 2, (((yy - xx) / 2).square() + yx.square()).sqrt()
        depth, length, width = ((v.clamp_min(0)).sqrt() for v in (zz, middle + apart, middle - apart))
        off = (cy.square() + cx.square()).sqrt()
        longest = length.clamp_min(_TINY)
        numbers = [(size + 1).log(), off, cz.abs(), depth, length, width, width / longest, depth / longest]
        return torch.stack(numbers, dim=1)

    @torch.no_grad()
    def fit(self, crops: Float[Tensor, "n 1 z y x"], deviation: float) -> None:
        """Fit components, and give every number mean 0 and this standard deviation on these crops."""
        self.components.copy_(principal_components(contrast(crops.flatten(1)), len(self.components)))
        raw = torch.cat([self.raw(part) for part in crops.split(256)])
        self.mean.copy_(raw.mean(dim=0))
        spread = raw.std(dim=0, correction=0)  # where none is, the number says nothing and stays 0
        self.scale.copy_(torch.where(spread > _TINY, deviation / spread.clamp_min(_TINY), 0.0))


def contrast(voxels: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
    """Voxels of each crop in deviations of the crop from its mean."""
    variance, mean = torch.var_mean(voxels, dim=1, keepdim=True, correction=0)
    return (voxels - mean) / (variance + _LEAST_CONTRAST**2).sqrt()


def principal_components(x: Float[Tensor, "n v"], count: int) -> Float[Tensor, "count v"]:
    """Directions of the largest variance, largest first; of each the largest entry is positive.

    Where there are fewer rows than that, the last ones are 0.
    """
    x = x.double() - x.double().mean(dim=0)
    if len(x) < x.shape[1]:  # the same directions from the smaller matrix
        rows = torch.linalg.eigh(x @ x.T).eigenvectors.flip(1)[:, :count].T
        vectors = F.pad(F.normalize(rows @ x, dim=1), (0, 0, 0, count - len(rows)))
    else:
        vectors = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :count].T
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return (vectors * largest.sign()).float()
