"""The encoder: a vision transformer over the patches of a 3D crop."""

from __future__ import annotations

import math
from itertools import islice
from typing import NamedTuple, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from canvas_fm.models.encoder.block import Block, some_tokens
from canvas_fm.models.encoder.descriptors import Descriptors
from canvas_fm.models.folder.network_config import EncoderConfig, Intensity, Pool

POOLS: tuple[str, ...] = get_args(Pool)
DENSE = ("tokens", "grid")  # a vector for each patch instead of one for the crop
LONGEST_PERIOD = 10.0


def patchify(
    crops: Float[Tensor, "b c z y x"], patch_zyx: tuple[int, int, int]
) -> Float[Tensor, "b tokens voxels"]:
    """Cut crops into patches (b, tokens, voxels), both in z, y, x order; of several channels one by one."""
    pz, py, px = patch_zyx
    return rearrange(crops, "b c (z pz) (y py) (x px) -> b (z y x) (c pz py px)", pz=pz, py=py, px=px)


def unpatchify(
    patches: Float[Tensor, "b tokens voxels"],
    grid_zyx: tuple[int, int, int],
    patch_zyx: tuple[int, int, int],
) -> Float[Tensor, "b c z y x"]:
    """Inverse of `patchify`."""
    (z, y, x), (pz, py, px) = grid_zyx, patch_zyx
    return rearrange(
        patches,
        "b (z y x) (c pz py px) -> b c (z pz) (y py) (x px)",
        z=z, y=y, x=x, pz=pz, py=py, px=px,
    )  # fmt: skip


def take_tokens(tokens: Float[Tensor, "b tokens d"], index: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """Gather tokens or patches of each crop by index, in that order."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def sincos_positions(grid_zyx: tuple[int, int, int], dim: int) -> Float[Tensor, "tokens dim"]:
    """Fixed sine–cosine position embedding: a third of the channels for each of z, y, x.

    The 3D form of the fixed positions of He et al., "Masked Autoencoders Are Scalable Vision Learners". Their
    longest period is 10,000; with 4 places along an axis most channels would be the same everywhere, so here
    it is 10 (on real cubes the crop's mean was then beaten in half the steps).
    """
    half = dim // 6
    frequency = 1.0 / LONGEST_PERIOD ** (torch.arange(half, dtype=torch.float64) / half)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid_zyx), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in axes]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()


def init_weights(module: nn.Module) -> None:
    """Initialisation of the masked autoencoder of He et al.: Xavier-uniform matrices, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# What windowed voxels are like on average. Encoder and decoder compute with (voxel − mean) / deviation: else
# the fixed positions, ten times as large, drown what is in a patch, and one step of Adam on the last layer
# moves every prediction by most of the deviation, so that the loss stays on a plateau for hundreds of steps.
VOXEL_MEAN, VOXEL_STD = 0.2, 0.1
# Added (in squares) to the deviation of a crop or patch: where there is nothing but noise, it is not blown up
# to a texture.
LEAST_CONTRAST = 0.005


class Scale(NamedTuple):
    """Affine scale of a model's input: windowed voxels = mean + deviation · value."""

    mean: Float[Tensor, "#b #tokens _"] | float
    deviation: Float[Tensor, "#b #tokens _"] | float


def scale_of(patches: Float[Tensor, "b some voxels"], intensity: Intensity, channels: int = 1) -> Scale:
    """Scale of each crop, and of each of its channels, computed from its visible patches only."""
    if intensity == "window":
        return Scale(VOXEL_MEAN, VOXEL_STD)
    return _own_scale(patches, (1, 2), channels)


def patch_scale(patches: Float[Tensor, "b tokens voxels"], channels: int = 1) -> Scale:
    """Scale of each patch: its mean and standard deviation, (b, tokens, 1) or one for every voxel."""
    return _own_scale(patches, (2,), channels)


def patch_variance(patches: Float[Tensor, "b tokens voxels"], channels: int = 1) -> Float[Tensor, "b tokens"]:
    """Variance of each patch, the mean of its channels'."""
    if channels == 1:
        return patches.var(dim=-1, unbiased=False)
    return rearrange(patches, "b t (c v) -> b t c v", c=channels).var(dim=-1, unbiased=False).mean(dim=-1)


def _own_scale(patches: Float[Tensor, "b some voxels"], over: tuple[int, ...], channels: int) -> Scale:
    if channels > 1:
        each = [_own_scale(part, over, 1) for part in patches.chunk(channels, dim=-1)]
        voxels = patches.shape[-1] // channels
        mean, deviation = (
            repeat(torch.cat(parts, dim=-1), "b t c -> b t (c v)", v=voxels)
            for parts in zip(*each, strict=True)
        )
        return Scale(mean, deviation)
    variance, mean = torch.var_mean(patches, dim=over, keepdim=True, correction=0)
    return Scale(mean, (variance + LEAST_CONTRAST**2).sqrt())


LEVELS = 4


def levels_of(patches: Float[Tensor, "b some voxels"]) -> Float[Tensor, "b some levels"]:
    """Brightness of each patch against the crop: logarithms of its mean, maximum and deviation, and of the
    deviation of all patches given, each over the mean of all; the same under any gain."""
    whole = patches.flatten(1)
    mean = whole.mean(dim=1, keepdim=True)
    values = [patches.mean(dim=-1), patches.amax(dim=-1), patches.std(dim=-1, correction=0)]
    values.append(whole.std(dim=1, correction=0, keepdim=True).expand_as(values[0]))
    floor = LEAST_CONTRAST  # what is below the window counts as dark
    return torch.stack(
        [((v.clamp_min(0) + floor) / (mean.clamp_min(0) + floor)).log() for v in values], dim=-1
    )


class ViTEncoder(nn.Module):
    """Vision transformer: crops to tokens, or to one embedding a crop."""

    positions: Tensor
    centre_tokens: Tensor
    pool: str = "mean"
    """Default pooling of `forward`; a loaded model's own (`Encoder`)."""

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EncoderConfig()
        self.patch_embed = nn.Linear(config.patch_voxels, config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.level_embed = nn.Linear(LEVELS, config.dim, bias=False) if config.levels else None
        self.register_buffer("positions", sincos_positions(config.grid_zyx, config.dim), persistent=False)
        self.register_buffer("centre_tokens", _centre_tokens(config.grid_zyx), persistent=False)
        self.apply(init_weights)
        nn.init.normal_(self.cls_token, std=0.02)
        self.descriptors = Descriptors(config) if config.descriptors is not None else None

    def tokens(
        self,
        crops: Float[Tensor, "b c z y x"],
        visible: Int[Tensor, "b k"] | None = None,
        layer: int | None = None,
    ) -> Float[Tensor, "b sequence d"]:
        """Tokens after the final norm, class token first; of the `visible` patches only, if given.

        With `layer` they leave after so many blocks (0: before the first), through the final norm as well.
        """
        return self.norm(self._through(self._enter(crops, visible), 0, layer))

    def before(self, crops: Float[Tensor, "b c z y x"], block: int) -> Float[Tensor, "b sequence d"]:
        """Input tokens of a block (counted from 0), of all patches; `onward` continues from there."""
        return self._through(self._enter(crops, None), 0, block)

    def onward(
        self,
        tokens: Float[Tensor, "b sequence d"],
        block: int,
        pool: str | None = None,
        layer: int | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Pooled tokens from the input tokens of a block: second half of `forward`, less descriptors.

        Of the last block only the tokens that are pooled are worked out: for the centre's 8 that is a quarter
        of its work.
        """
        last, pool = len(self.blocks) if layer is None else layer, pool or self.pool
        if pool not in ("cls", "centre") or last == block:
            return self.pooled(self.norm(self._through(tokens, block, last)), pool)
        token_index = 1 + self.centre_tokens if pool == "centre" else torch.zeros_like(self.centre_tokens[:1])
        x = some_tokens(self.blocks[last - 1], self._through(tokens, block, last - 1), token_index)
        return self.norm(x).mean(dim=1)

    def forward(
        self, crops: Float[Tensor, "b c z y x"], pool: str | None = None, layer: int | None = None
    ) -> Float[Tensor, "b ..."]:
        """One embedding a crop (b, d), after `layer` blocks (None: after all), pooled by `pool` (None: by
        `self.pool`).

        `mean` is the mean of the patch tokens, `cls` the class token, `centre` the mean of the (up to) 8
        tokens around the crop's centre, where the cell is, `contrast` the same less the mean of all: what the
        cell has beyond its surroundings. Behind them are the descriptors of a net that has some. `tokens` are
        the patch tokens themselves (b, tokens, d), in z, y, x order, `grid` the same where the patches lie
        (b, d, z, y, x).
        """
        pool = pool or self.pool
        pooled = self.pooled(self.tokens(crops, layer=layer), pool)
        return self.described(pooled, crops) if pool in POOLS else pooled

    def described(
        self, pooled: Float[Tensor, "b d"], crops: Float[Tensor, "b c z y x"]
    ) -> Float[Tensor, "b embedding"]:
        """Embeddings from pooled tokens: with the crops' descriptors behind them, where the net has some."""
        if self.descriptors is None:
            return pooled
        return torch.cat([pooled, self.descriptors(crops).to(pooled.dtype)], dim=1)

    def _enter(
        self, crops: Float[Tensor, "b c z y x"], visible: Int[Tensor, "b k"] | None
    ) -> Float[Tensor, "b sequence d"]:
        patches = patchify(crops, self.config.patch_zyx)
        positions: Tensor = self.positions
        if visible is not None:
            patches = take_tokens(patches, visible)
            positions = positions[visible]
        mean, deviation = scale_of(patches, self.config.intensity, self.config.channels)
        x = self.patch_embed((patches - mean) / deviation)
        x = x + positions.to(x.dtype)
        if self.level_embed is not None:
            x = x + self.level_embed(levels_of(patches))
        return torch.cat([self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)

    def _through(self, x: Float[Tensor, "b s d"], first: int, last: int | None) -> Float[Tensor, "b s d"]:
        for block in islice(self.blocks, first, last):
            x = block(x)
        return x

    def pooled(self, tokens: Float[Tensor, "b sequence d"], pool: str) -> Float[Tensor, "b ..."]:
        """Pooled tokens from all tokens, class token first."""
        if pool == "mean":
            return tokens[:, 1:].mean(dim=1)
        if pool == "cls":
            return tokens[:, 0]
        if pool == "centre":
            return tokens[:, 1 + self.centre_tokens].mean(dim=1)
        if pool == "contrast":
            return tokens[:, 1 + self.centre_tokens].mean(dim=1) - tokens[:, 1:].mean(dim=1)
        if pool == "tokens":
            return tokens[:, 1:]
        if pool == "grid":
            z, y, x = self.config.grid_zyx
            return rearrange(tokens[:, 1:], "b (z y x) d -> b d z y x", z=z, y=y, x=x)
        raise ValueError(f"pool is {pool!r}; it has to be one of {', '.join((*POOLS, *DENSE))}")

    def one_shape(self, pool: str) -> tuple[int, ...]:
        """Output shape of one crop: (embedding,), (tokens, d) or (d, z, y, x)."""
        config = self.config
        if pool == "grid":
            return (config.dim, *config.grid_zyx)
        return (config.tokens, config.dim) if pool == "tokens" else (config.embedding_dim,)


def _centre_tokens(grid_zyx: tuple[int, int, int]) -> Int[Tensor, " centre"]:
    index = torch.arange(math.prod(grid_zyx)).reshape(grid_zyx)
    z, y, x = (slice((n - 1) // 2, n // 2 + 1) for n in grid_zyx)
    return index[z, y, x].reshape(-1)
