"""Joint embedding: encoder with projector, contrastive and VICReg losses, reconstruction beside them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from canvas_fm.models.encoder.mae import Decoder, content_aware_loss, loss_target, masked_tokens
from canvas_fm.models.encoder.vit import ViTEncoder, patchify, scale_of, take_tokens
from canvas_fm.models.folder.network_config import DecoderConfig, EncoderConfig, ProjectorConfig


class JointEmbedder(nn.Module):
    """Encoder and projector: crops to projections; with a decoder, masked patches are predicted too."""

    def __init__(
        self,
        encoder: EncoderConfig | None = None,
        projector: ProjectorConfig | None = None,
        decoder: DecoderConfig | None = None,
    ) -> None:
        super().__init__()
        self.encoder = ViTEncoder(encoder)
        self.projector = _projector(self.encoder.config.dim, projector or ProjectorConfig())
        self.decoder = None if decoder is None else Decoder(self.encoder.config, decoder)

    def forward(self, crops: Float[Tensor, "b c z y x"], visible: Int[Tensor, "b k"]) -> Float[Tensor, "b e"]:
        """Projections of the mean of the centre's tokens, first in `visible` (see `centre_first`)."""
        return self.project(self.encoder.tokens(crops, visible))

    def project(self, tokens: Float[Tensor, "b s d"]) -> Float[Tensor, "b e"]:
        """Projections from the encoder's tokens: class token, then the centre's, then others."""
        centre = tokens[:, 1 : 1 + len(self.encoder.centre_tokens)].mean(dim=1)
        projected: Tensor = self.projector(centre)
        return projected

    def reconstruction_loss(
        self,
        tokens: Float[Tensor, "b s d"],
        crops: Float[Tensor, "b c z y x"],
        visible: Int[Tensor, "b k"],
    ) -> Float[Tensor, ""]:
        """Uniform loss of the masked patches, in the scale in which the encoder sees the crop."""
        assert self.decoder is not None
        config = self.encoder.config
        patches = patchify(crops, config.patch_zyx)
        scale = scale_of(take_tokens(patches, visible), config.intensity)
        masked = masked_tokens(visible, config.tokens)
        predicted = self.decoder.voxels(self.decoder.masked(tokens, visible, masked), scale)
        target = loss_target(patches, visible, config.intensity).at(masked)
        summed, count = content_aware_loss(predicted, target, gamma=0.0, mean_variance=1.0)
        return summed / count


def _projector(dim: int, config: ProjectorConfig) -> nn.Sequential:
    hidden = config.hidden
    return nn.Sequential(
        *(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
        *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
        nn.Linear(hidden, config.dim),
    )


def centre_first(
    encoder: ViTEncoder, batch: int, visible: int, *, generator: torch.Generator
) -> Int[Tensor, "b k"]:
    """`visible` token indices of each crop: those of the centre first, then random others."""
    order = torch.rand(batch, encoder.config.tokens, generator=generator, device=generator.device)
    centre = encoder.centre_tokens.to(order.device)
    order[:, centre] = -1 - torch.arange(len(centre), device=order.device).flip(0).to(order)
    return order.argsort(dim=1)[:, :visible]


def contrastive_loss(
    first: Float[Tensor, "n e"],
    second: Float[Tensor, "n e"],
    *,
    temperature: float = 0.2,
    group: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Decoupled contrastive loss: equal rows are positives, all other rows negatives.

    With `group`, the volume of each row, only other rows of the same volume are; each has two rows or more.

    Yeh et al., "Decoupled Contrastive Learning" (arXiv 2110.06848), without weights: the InfoNCE of SimCLR
    whose denominator leaves the positive out, so that small batches learn as well.
    """
    n = len(first)
    unit = F.normalize(torch.cat([first, second]), dim=1)
    cosine = unit @ unit.T / temperature
    index = torch.arange(2 * n, device=unit.device)
    twin = index.roll(n)
    positive = cosine[index, twin]
    self_pairs = torch.eye(2 * n, dtype=torch.bool, device=unit.device)
    left_out = self_pairs | self_pairs[twin]
    if group is not None:
        both = group.repeat(2)
        left_out = left_out | (both[:, None] != both)
    negatives = cosine.masked_fill(left_out, float("-inf"))
    return (negatives.logsumexp(dim=1) - positive).mean()


def vicreg_loss(
    first: Float[Tensor, "n e"],
    second: Float[Tensor, "n e"],
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Float[Tensor, ""]:
    """VICReg: invariance, variance and covariance terms; no negatives.

    Eq. 1 to 6 of Bardes et al., "VICReg" (arXiv 2105.04906).
    """
    loss = invariance * F.mse_loss(first, second)
    for side in (first, second):
        centred = side - side.mean(dim=0)
        cov = centred.T @ centred / (len(side) - 1)
        deviation = (cov.diagonal() + 1e-4).sqrt()
        loss = loss + variance * F.relu(1 - deviation).mean() / 2
        loss = loss + covariance * (cov.square().sum() - cov.diagonal().square().sum()) / side.shape[1]
    return loss
