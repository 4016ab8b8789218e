"""The networks with torch and einops alone; weights have the names of those of `canvas_fm.models`.

Without timm too: beside a torchvision of another build it cannot be imported.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

CROP, PATCH, GRID = (8, 16, 16), (2, 4, 4), (4, 4, 4)
TOKENS, VOXELS = math.prod(GRID), math.prod(PATCH)
_FLOOR = 0.005  # of a crop's deviation


def patchify(crops: Tensor) -> Tensor:
    z, y, x = PATCH
    return rearrange(crops, "b 1 (nz z) (ny y) (nx x) -> b (nz ny nx) (z y x)", z=z, y=y, x=x)


def positions(dim: int) -> Tensor:
    half = dim // 6
    frequency = 1.0 / 10.0 ** (torch.arange(half, dtype=torch.float64) / half)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in GRID), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in axes]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()


def centre_tokens() -> Tensor:
    return torch.arange(TOKENS).reshape(GRID)[1:3, 1:3, 1:3].reshape(-1)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def scale_of(patches: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(patches, dim=(1, 2), keepdim=True, correction=0)
    return mean, (variance + _FLOOR**2).sqrt()


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h c) -> three b h n c", three=3, h=self.heads)
        projected: Tensor = self.proj(
            rearrange(F.scaled_dot_product_attention(q, k, v), "b h n c -> b n (h c)")
        )
        return projected


class Block(nn.Module):
    """One layer of a transformer, pre-norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn = Attention(dim, heads)
        fc1, fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def blocks(dim: int, depth: int, heads: int) -> nn.ModuleList:
    return nn.ModuleList(Block(dim, heads) for _ in range(depth))


class Encoder(nn.Module):
    """Vision transformer over the patches of crops that are seen in deviations from their mean."""

    def __init__(self, dim: int = 192, depth: int = 6) -> None:
        super().__init__()
        self.dim, self.depth = dim, depth
        self.patch_embed = nn.Linear(VOXELS, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = blocks(dim, depth, dim // 64 or 1)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("positions", positions(dim), persistent=False)
        self.register_buffer("centre", centre_tokens(), persistent=False)

    def tokens(self, crops: Tensor, visible: Tensor | None = None) -> Tensor:
        patches, places = patchify(crops), self.positions
        if visible is not None:
            patches, places = take(patches, visible), places[visible]
        mean, deviation = scale_of(patches)
        x = self.patch_embed((patches - mean) / deviation) + places
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, crops: Tensor) -> Tensor:
        """Embeddings: the mean of the tokens around the centre."""
        return self.tokens(crops)[:, 1 + self.centre].mean(dim=1)

    def operations(self, sequence: int = TOKENS + 1) -> float:
        """Floating-point operations of one crop, forward."""
        linear = 12 * self.dim**2 * sequence + 2 * sequence**2 * self.dim
        return 2.0 * (self.depth * linear + sequence * VOXELS * self.dim)


class Hybrid(nn.Module):
    """Encoder, projector and decoder: contrast of two views, and reconstruction of their masked patches."""

    def __init__(self, dim: int = 192, depth: int = 6, visible: int = 16) -> None:
        super().__init__()
        self.encoder, self.visible = Encoder(dim, depth), visible
        parts: list[nn.Module] = []
        for width in (dim, 512):
            parts += [nn.Linear(width, 512), nn.BatchNorm1d(512), nn.ReLU()]
        self.projector = nn.Sequential(*parts, nn.Linear(512, 128))
        self.enter, self.mask_token = nn.Linear(dim, 96), nn.Parameter(torch.zeros(1, 1, 96))
        self.decoder, self.norm = blocks(96, 2, 3), nn.LayerNorm(96, eps=1e-6)
        self.head = nn.Linear(96, VOXELS)
        self.register_buffer("decoder_positions", positions(96), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, views: Tensor, noise: Tensor, weight: float = 0.5) -> Tensor:
        """Loss of views (2n, 1, z, y, x), first views first; `noise` (2n, tokens) chooses what is visible."""
        encoder = self.encoder
        order = noise.index_fill(1, encoder.centre, -1.0).argsort(dim=1)
        visible = order[:, : self.visible]
        tokens = encoder.tokens(views, visible)
        first, second = self.projector(tokens[:, 1:9].mean(dim=1)).float().chunk(2)
        return contrast(first, second) + weight * self._reconstruction(tokens, views, visible)

    def _reconstruction(self, tokens: Tensor, views: Tensor, visible: Tensor) -> Tensor:
        n, places = len(views), self.decoder_positions
        seen = self.enter(tokens[:, 1:])
        x = self.mask_token.to(seen.dtype).expand(n, TOKENS, -1)
        x = x.scatter(1, visible[..., None].expand(-1, -1, 96), seen) + places
        for block in self.decoder:
            x = block(x)
        patches = patchify(views)
        mean, deviation = scale_of(take(patches, visible))
        target = ((patches - mean) / deviation).clamp(-6, 6)
        error = (self.head(self.norm(x)).float() - target).square().mean(dim=-1)
        masked = torch.ones_like(error).scatter(1, visible, 0.0)
        return (error * masked).sum() / masked.sum()


def contrast(first: Tensor, second: Tensor, temperature: float = 0.2) -> Tensor:
    """Decoupled contrastive loss: equal rows are positives, all other rows negatives."""
    unit = F.normalize(torch.cat([first, second]), dim=1)
    cosine = unit @ unit.T / temperature
    index = torch.arange(len(unit), device=unit.device)
    twin = index.roll(len(first))
    own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (cosine.masked_fill(own | own[twin], -1e4).logsumexp(dim=1) - cosine[index, twin]).mean()


class Mixer(nn.Module):
    """x + f(x) of a depthwise convolution, then a pointwise one: a layer of the detector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(dim, dim, 3, groups=dim, padding=1)
        self.norm, self.norm_after = nn.BatchNorm3d(dim), nn.BatchNorm3d(dim)
        self.pointwise = nn.Conv3d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm(F.gelu(self.depthwise(x)))
        return self.norm_after(F.gelu(self.pointwise(x)))


def detector(dim: int = 48, depth: int = 3) -> nn.Sequential:
    """A detector of the shipped ones' size without local contrast: voxels to logits, 16 a patch."""
    embed = nn.Conv3d(1, dim, (1, 4, 4), stride=(1, 4, 4))
    return nn.Sequential(embed, *(Mixer(dim) for _ in range(depth)), nn.Conv3d(dim, 16, 1))
