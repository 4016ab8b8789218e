"""Augmentations of contrastive pretraining: geometry, optics, noise and intensity, batched.

A box around a place, larger than the crop, goes in; a crop of it comes out: shifted, flipped, turned,
scaled, then blurred, with another gamma, gain and offset, stripes, a gradient of brightness and noise. The
place stays near the crop's centre voxel (size // 2): `shift_zyx` voxels away at most, before the turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from canvas_fm.training.recipe.joint_recipe import ViewRecipe

Zyx = tuple[int, int, int]
_FLOOR = 0.005  # of a crop's deviation, in the window: where there is nothing, nothing is blown up


def box_zyx(crop_zyx: Zyx, recipe: ViewRecipe) -> Zyx:
    """Smallest even box size that contains every view of its centre voxel, however turned and shifted."""
    scale = recipe.scale if recipe.free else 1.0
    diagonal = math.hypot(crop_zyx[1], crop_zyx[2]) if recipe.free else max(crop_zyx[1:])
    spans = (crop_zyx[0], diagonal, diagonal)
    # The centre voxel of an even size is size // 2, so one voxel less lies above it than below.
    z, y, x = (2 * math.ceil(s * scale / 2 + t) + 2 for s, t in zip(spans, recipe.shift_zyx, strict=True))
    return z, y, x


@dataclass
class Draw:
    """Random numbers for a batch of n views on one generator."""

    n: int
    generator: torch.Generator

    def even(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform from low to high: (n, *shape)."""
        drawn = torch.rand(self.n, *shape, generator=self.generator, device=self.generator.device)
        return low + (high - low) * drawn

    def factor(self, most: float) -> Float[Tensor, "n 1 1 1 1"]:
        """Log-uniform from 1 / most to most."""
        return self.even(-math.log(most), math.log(most), 1, 1, 1, 1).exp()

    def amount(self, most: float, share: float) -> Float[Tensor, "n 1 1 1 1"]:
        """Uniform up to `most` with a probability, else 0."""
        return self.even(0, most, 1, 1, 1, 1) * (self.even(0, 1, 1, 1, 1, 1) < share)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.n, *shape, generator=self.generator, device=self.generator.device)


def make_views(
    boxes: Float[Tensor, "n 1 bz by bx"], crop_zyx: Zyx, recipe: ViewRecipe, generator: torch.Generator
) -> Float[Tensor, "n 1 z y x"]:
    """One view of each box (windowed, not clipped): crops in [0, 1]."""
    draw = Draw(len(boxes), generator)
    crops = F.grid_sample(
        boxes, _places(boxes.shape, crop_zyx, recipe, draw), padding_mode="border", align_corners=True
    )
    return _simulate_imaging(crops, recipe, draw)


def _places(shape: torch.Size, crop_zyx: Zyx, recipe: ViewRecipe, draw: Draw) -> Float[Tensor, "n z y x 3"]:
    """Sampling grid of each view in its box for `grid_sample`: x, y, z from −1 to 1.

    Views that are not free lie on voxels, so that nothing is interpolated and their noise stays as it is.
    """
    free = draw.even(0, 1) < recipe.free
    angle = torch.where(free, draw.even(0, 2 * math.pi), draw.even(0, 4).floor() * (math.pi / 2))
    scale = torch.where(free, draw.factor(recipe.scale).flatten(), torch.ones_like(angle))
    flip = torch.where(draw.even(0, 1, 3) < 0.5, -1.0, 1.0)
    max_shift = torch.tensor(recipe.shift_zyx, device=flip.device)
    shift = draw.even(-1, 1, 3) * max_shift
    whole = torch.minimum(torch.maximum(shift.round(), -max_shift.floor()), max_shift.floor())
    shift = torch.where(free[:, None], shift, whole)

    axes = (torch.arange(s, device=flip.device) - s // 2 for s in crop_zyx)
    offset = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).float()  # (z, y, x, 3) from the centre
    z, y, x = (flip[:, None, None, None] * offset).unbind(dim=-1)
    cos, sin = ((f(angle) * scale)[:, None, None, None] for f in (torch.cos, torch.sin))
    turned = (z * scale[:, None, None, None], cos * y - sin * x, sin * y + cos * x)
    units = [
        2 * (t + shift[:, axis, None, None, None] + n // 2) / (n - 1) - 1
        for axis, (t, n) in enumerate(zip(turned, shape[2:], strict=True))
    ]
    return torch.stack(units[::-1], dim=-1)


def _simulate_imaging(
    crops: Float[Tensor, "n 1 z y x"], recipe: ViewRecipe, draw: Draw
) -> Float[Tensor, "n 1 z y x"]:
    """Random changes of microscope and staining on crops, clipped to [0, 1]."""
    _, _, depth, height, width = crops.shape
    along, across = draw.amount(recipe.blur, 0.6), draw.amount(recipe.blur, 0.6)
    for axis, strength in ((2, along), (3, across), (4, across)):
        crops = crops + strength * (_smoothed(crops, axis) - crops)
    deviation = crops.std(dim=(2, 3, 4), keepdim=True) + _FLOOR
    low, high = crops.amin((2, 3, 4), keepdim=True), crops.amax((2, 3, 4), keepdim=True)
    unit = ((crops - low) / (high - low + 1e-6)).clamp(1e-6, 1)
    crops = low + (high - low) * unit ** draw.factor(recipe.gamma)
    rows = draw.normal(1, depth, height, 1)
    crops = crops + deviation * draw.amount(recipe.stripes, 0.3) * _smoothed(rows, 3) * 1.6
    crops = crops + deviation * draw.amount(recipe.ramp, 0.5) * _gradient(crops, draw)
    level = (crops / crops.mean(dim=(2, 3, 4), keepdim=True).clamp_min(0.02)).clamp(0, 3)
    shot = (0.5 + 0.5 * level).sqrt() * draw.normal(1, depth, height, width)
    crops = crops + deviation * draw.amount(recipe.noise, 0.7) * shot
    offset = draw.even(-recipe.offset, recipe.offset, 1, 1, 1, 1)
    return (crops * draw.factor(recipe.gain) + offset).clamp(0, 1)


def _smoothed(x: Float[Tensor, "n 1 z y x"], axis: int) -> Float[Tensor, "n 1 z y x"]:
    """Binomial filter 1, 2, 1 along an axis, ends repeated."""
    n = x.shape[axis]
    before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, n - 1)], dim=axis)
    after = torch.cat([x.narrow(axis, 1, n - 1), x.narrow(axis, n - 1, 1)], dim=axis)
    return (before + 2 * x + after) / 4


def _gradient(crops: Float[Tensor, "n 1 z y x"], draw: Draw) -> Float[Tensor, "n 1 z y x"]:
    """Linear gradient from −1 to 1 over each crop in a random direction."""
    direction = F.normalize(draw.normal(3), dim=1)
    axes = (torch.linspace(-1, 1, s, device=crops.device) for s in crops.shape[2:])
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return rearrange(torch.einsum("na,azyx->nzyx", direction, grid), "n z y x -> n 1 z y x")
