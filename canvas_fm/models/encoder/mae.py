"""The 3D masked autoencoder of the CANVAS paper and its content-aware loss."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from canvas_fm.models.encoder.block import Block, repeated_tokens, some_tokens
from canvas_fm.models.encoder.vit import (
    Scale,
    ViTEncoder,
    init_weights,
    patch_scale,
    patch_variance,
    patchify,
    scale_of,
    sincos_positions,
    take_tokens,
)
from canvas_fm.models.folder.network_config import DecoderConfig, EncoderConfig, masked_count


@dataclass
class Reconstruction:
    """Predictions of all patches or of the masked ones, which are masked, and the tokens before the head."""

    patches: Float[Tensor, "b some voxels"]
    masked: Bool[Tensor, "b some"]
    tokens: Float[Tensor, "b some d"]


def random_mask(
    batch: int, tokens: int, ratio: float, *, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b m"]]:
    """Split token indices into (visible, masked), independently for every crop, on the generator's device."""
    device = generator.device if generator is not None else None
    order = torch.rand(batch, tokens, generator=generator, device=device).argsort(dim=1)
    keep = tokens - masked_count(ratio, tokens)
    return order[:, :keep], order[:, keep:]


def masked_tokens(visible: Int[Tensor, "b k"], tokens: int) -> Int[Tensor, "b m"]:
    """Token indices of each crop that are not `visible`, ascending; no synchronisation with the device."""
    shown = torch.zeros(len(visible), tokens, dtype=torch.uint8, device=visible.device)
    order = shown.scatter(1, visible, 1).argsort(dim=1, stable=True)
    return order[:, : tokens - visible.shape[1]]


class Decoder(nn.Module):
    """Visible tokens to one token for every patch, mask tokens in place of the masked ones."""

    positions: Tensor

    def __init__(self, encoder: EncoderConfig, config: DecoderConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.dim, config.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, encoder.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.head = nn.Linear(config.dim, encoder.patch_voxels)
        self.register_buffer("positions", sincos_positions(encoder.grid_zyx, config.dim), persistent=False)
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, tokens: Float[Tensor, "b sequence d"], visible: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b tokens e"]:
        x = self.embed(tokens)
        count = self.positions.shape[0]
        index = visible[..., None].expand(-1, -1, x.shape[-1])
        # Without the in-place form autograd would keep a second copy of the mask tokens.
        patches = self.mask_token.to(x.dtype).expand(x.shape[0], count, -1).scatter(1, index, x[:, 1:])
        x = torch.cat([x[:, :1], patches + self.positions.to(x.dtype)], dim=1)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x[:, 1:])
        return normed

    def masked(
        self, tokens: Float[Tensor, "b sequence d"], visible: Int[Tensor, "b k"], masked: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m e"]:
        """Tokens of the `masked` patches alone, in that order: those of `forward` up to rounding, for a loss.

        Attention knows no order, so masked tokens stand behind the others and are cut off, not gathered. What
        depends on them alone is worked out once a place in the first block, and in the last nothing is for
        the others beyond their keys and values.
        """
        seen = self.embed(tokens)
        positions = self.positions.to(seen.dtype)
        hidden = self.mask_token[0].to(seen.dtype) + positions
        seen = torch.cat([seen[:, :1], seen[:, 1:] + positions[visible]], dim=1)
        crops, first, _ = seen.shape
        rows = torch.cat([seen.flatten(0, 1), hidden])
        index = torch.arange(crops * first, device=masked.device).reshape(crops, first)
        index = torch.cat([index, crops * first + masked], dim=1)
        if len(self.blocks) == 1:
            x = F.embedding(index, rows)
        else:
            x = repeated_tokens(self.blocks[0], rows, index)
            for block in islice(self.blocks, 1, len(self.blocks) - 1):
                x = block(x)
        normed: Tensor = self.norm(some_tokens(self.blocks[-1], x, slice(first, None)))
        return normed

    def voxels(self, tokens: Float[Tensor, "b tokens e"], scale: Scale) -> Float[Tensor, "b tokens voxels"]:
        """Windowed voxels of every patch from its token."""
        return scale.mean + scale.deviation * self.head(tokens)


class MaskedAutoencoder(nn.Module):
    """Masked autoencoder: predicts masked patches of a crop from the visible ones."""

    def __init__(self, encoder: EncoderConfig | None = None, decoder: DecoderConfig | None = None) -> None:
        super().__init__()
        self.encoder = ViTEncoder(encoder)
        self.decoder_config = decoder or DecoderConfig()
        self.decoder = Decoder(self.encoder.config, self.decoder_config)

    def forward(
        self,
        crops: Float[Tensor, "b c z y x"],
        mask_ratio: float = 0.75,
        *,
        generator: torch.Generator | None = None,
        visible: Int[Tensor, "b k"] | None = None,
    ) -> Reconstruction:
        """Predict every patch of windowed crops (b, c, z, y, x) from the visible ones.

        Which are visible is drawn from `generator` at `mask_ratio`, or given as token indices. What stands in
        a masked patch has no influence on the prediction, but for one thing where the decoder's targets are
        `patch`: its mean and deviation, in which the prediction is put into voxels.
        """
        tokens = self.encoder.config.tokens
        if visible is None:
            visible, _ = random_mask(crops.shape[0], tokens, mask_ratio, generator=generator)
            visible = visible.to(crops.device)
        scale = self.scale(self.target(crops), visible)
        decoded = self.decoder(self.encoder.tokens(crops, visible), visible)
        masked = torch.ones(crops.shape[0], tokens, dtype=torch.bool, device=crops.device)
        return Reconstruction(self.decoder.voxels(decoded, scale), masked.scatter(1, visible, False), decoded)

    def masked_patches(
        self, crops: Float[Tensor, "b c z y x"], visible: Int[Tensor, "b k"], masked: Int[Tensor, "b m"]
    ) -> Reconstruction:
        """Predict the `masked` patches alone, in that order: what a loss needs, with fewer products."""
        target = self.target(crops)
        own = self.decoder_config.targets == "patch"
        scale = self.scale(take_tokens(target, masked) if own else target, visible)
        decoded = self.decoder.masked(self.encoder.tokens(crops, visible), visible, masked)
        return Reconstruction(
            self.decoder.voxels(decoded, scale), torch.ones_like(masked, dtype=torch.bool), decoded
        )

    def scale(self, target: Float[Tensor, "b tokens voxels"], visible: Int[Tensor, "b k"]) -> Scale:
        """Scale of the decoder's targets: of the visible patches, or of each patch."""
        config = self.encoder.config
        if self.decoder_config.targets == "patch":
            return patch_scale(target, config.channels)
        return scale_of(take_tokens(target, visible), config.intensity, config.channels)

    def target(self, crops: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b tokens voxels"]:
        """Target of the prediction in windowed voxels, whatever the decoder's own targets are."""
        return patchify(crops, self.encoder.config.patch_zyx)


LossError = Literal["window", "contrast", "patch"]


@dataclass(frozen=True)
class LossTarget:
    """Target of masked patches: voxels, the error's unit, and the content weights."""

    voxels: Float[Tensor, "b tokens voxels"]
    masked: Bool[Tensor, "b tokens"]
    unit: Float[Tensor, "b _ _"]
    variance: Float[Tensor, "b tokens"]

    def at(self, masked: Int[Tensor, "b m"]) -> LossTarget:
        """The target of some patches of each crop, in that order."""
        unit = self.unit if self.unit.shape[1] == 1 else take_tokens(self.unit, masked)
        return LossTarget(
            take_tokens(self.voxels, masked),
            self.masked.gather(1, masked),
            unit,
            self.variance.gather(1, masked),
        )

    def rows(self, part: slice) -> LossTarget:
        """The target of a subset of the crops."""
        return LossTarget(self.voxels[part], self.masked[part], self.unit[part], self.variance[part])


def loss_target(
    voxels: Float[Tensor, "b tokens voxels"],
    visible: Int[Tensor, "b k"],
    error: LossError = "window",
    channels: int = 1,
) -> LossTarget:
    """Target of patchified crops with the given visible patches, in one of three units.

    `window`: the error in windowed voxels, as in the paper. `contrast`: in deviations of the crop's visible
    patches, and each patch's variance too. `patch`: in deviations of each patch, whose variance stays in
    windowed voxels, as in its own unit all have the same.
    """
    unit = torch.ones_like(voxels[:, :1, :1])
    if error != "window":
        scale = (
            patch_scale(voxels, channels)
            if error == "patch"
            else scale_of(take_tokens(voxels, visible), error, channels)
        )
        unit = torch.as_tensor(scale.deviation)
    content = voxels / unit if error == "contrast" else voxels
    masked = torch.ones(voxels.shape[:2], dtype=torch.bool, device=voxels.device).scatter(1, visible, False)
    return LossTarget(voxels, masked, unit, patch_variance(content, channels))


def content_weights(
    target: LossTarget, *, alpha: float = 1.0, gamma: float = 9.0, mean_variance: float | Float[Tensor, ""]
) -> Float[Tensor, "b tokens"]:
    """Content weight of each masked patch: α + γ·min(1, Var(x)/σ̄²), 1 for background to 10 for cells.

    Eq. 3 of the CANVAS paper; a visible patch counts 0. γ = 0 is the uniform loss. Where nothing varies at
    all (σ̄² = 0) every patch counts as background.
    """
    relative = target.variance / torch.as_tensor(mean_variance).clamp(min=1e-12)
    return (alpha + gamma * relative.clamp(max=1.0)) * target.masked


def content_aware_loss(
    prediction: Float[Tensor, "b tokens voxels"],
    target: LossTarget,
    *,
    alpha: float = 1.0,
    gamma: float = 9.0,
    mean_variance: float | Float[Tensor, ""],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(Σ w·MSE, Σ w) over masked patches; the loss is their quotient over the optimizer batch.

    Training and evaluation both call it, so their losses are in one unit. Two sums instead of one mean, so
    that micro-batches and ranks add up to the loss of the whole batch.
    """
    weights = content_weights(target, alpha=alpha, gamma=gamma, mean_variance=mean_variance)
    error = ((prediction.float() - target.voxels) / target.unit).square().mean(dim=-1)
    return (weights * error).sum(), weights.sum()
