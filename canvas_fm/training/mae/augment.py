"""The paper's augmentations, batched on the device: flips, 90° turns in y, x, noise; window to [0, 1].

All that is random is drawn for the whole optimizer batch from one generator. A micro-batch or a rank applies
its rows of it, so the numbers do not depend on how a batch is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from canvas_fm.training.recipe.recipe import AugmentRecipe

Zyx = tuple[int, int, int]


@dataclass
class Draw:
    """Random augmentation parameters of each crop of a batch."""

    flips_zyx: Bool[Tensor, "b 3"]
    quarter_turns: Int[Tensor, " b"]
    noise: Float[Tensor, "b c z y x"] | None

    def rows(self, part: slice) -> Draw:
        """The parameters of a subset of the crops."""
        noise = None if self.noise is None else self.noise[part]
        return Draw(self.flips_zyx[part], self.quarter_turns[part], noise)


def draw(
    recipe: AugmentRecipe, batch: int, crop_zyx: Zyx, generator: torch.Generator, channels: int = 1
) -> Draw:
    """Draw parameters for a batch on the generator's device; crops not square in y, x are never turned.

    All channels are turned alike; each has noise of its own.
    """
    device = generator.device
    flips = torch.rand(batch, 3, generator=generator, device=device) < recipe.flip
    turns = torch.randint(0, 4, (batch,), generator=generator, device=device)
    if not recipe.rotate or crop_zyx[1] != crop_zyx[2]:
        turns = torch.zeros_like(turns)
    noise = None
    if recipe.noise > 0:
        noise = recipe.noise * torch.randn(batch, channels, *crop_zyx, generator=generator, device=device)
    return Draw(flips, turns, noise)


def turn(crops: Tensor, draw: Draw) -> Tensor:
    """Rotate crops (b, z, y, x) or (b, c, z, y, x) in y, x as `torch.rot90`, then flip them."""
    if crops.ndim == 5:
        return torch.stack([turn(channel, draw) for channel in crops.unbind(dim=1)], dim=1)
    odd = (draw.quarter_turns % 2 == 1)[:, None, None, None]
    if crops.shape[-1] == crops.shape[-2]:
        crops = torch.where(odd, crops.transpose(-1, -2), crops)
    # A quarter turn is a transpose and one flip, a half turn is two: they join the flips that were drawn.
    back = (draw.quarter_turns == 1) | (draw.quarter_turns == 2)
    over = (draw.quarter_turns == 2) | (draw.quarter_turns == 3)
    z, y, x = draw.flips_zyx.unbind(dim=1)
    for axis, flag in ((1, z), (2, y ^ back), (3, x ^ over)):
        crops = torch.where(flag[:, None, None, None], crops.flip(axis), crops)
    return crops


def to_unit(raw: Tensor, windows: Float[Tensor, "b *c 2"]) -> Float[Tensor, "b _ z y x"]:
    """Window stored voxels (b, z, y, x): (x − low) · scale, with (low, 1 / (high − low)) of each crop.

    Of several channels (b, c, z, y, x) and their windows (b, c, 2). The same arithmetic as `Window.apply`, so
    training and inference see the same numbers.
    """
    if raw.ndim == 4:
        raw, windows = raw[:, None], windows[:, None]
    low, scale = windows[..., None, None, None].unbind(dim=2)
    return ((widen(raw) - low) * scale).clamp_(0, 1)


def widen(raw: Tensor) -> Tensor:
    """Stored voxels as float32; int16 holds the bits of uint16, which torch barely supports."""
    if raw.dtype == torch.int16:
        return (raw.to(torch.int32) & 0xFFFF).float()
    return raw.float()


def augment(raw: Tensor, windows: Float[Tensor, "b *c 2"], draw: Draw) -> Float[Tensor, "b _ z y x"]:
    """Augment raw crops (b, z, y, x) or (b, c, z, y, x): turn, flip, window, noise, clip to [0, 1]."""
    crops = to_unit(turn(raw, draw), windows)
    return crops if draw.noise is None else (crops + draw.noise).clamp_(0, 1)
