"""Self-distillation: masked patches also predict a teacher's features.

The teacher is a moving average of the student's own encoder and sees the whole crop; its upper layers say of
every patch what it is in its surroundings, where voxels say mostly how bright and how noisy it is. After
Baevski et al., "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language".
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from canvas_fm.models.encoder.mae import MaskedAutoencoder, Reconstruction
from canvas_fm.models.encoder.vit import ViTEncoder, init_weights
from canvas_fm.training.recipe.recipe import DistilRecipe
from canvas_fm.training.run.timm_import import ModelEmaV3


class Student(nn.Module):
    """The trained model: masked autoencoder, and a head from decoder tokens to the teacher's features.

    The head's weights are drawn by `seed`, and torch's own generator is left alone; it does not ship.
    """

    def __init__(self, mae: MaskedAutoencoder, seed: int) -> None:
        super().__init__()
        self.mae = mae
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(mae.decoder_config.dim, mae.encoder.config.dim)
            init_weights(self.head)


class Teacher:
    """Exponential moving average of the student's encoder, without gradients."""

    def __init__(self, recipe: DistilRecipe, encoder: ViTEncoder) -> None:
        self.layers, self.weight = recipe.layers, recipe.weight
        self.normalised = _over_features if recipe.normalise == "layer" else _over_patches
        # Until the momentum is reached the average is the plain mean of the students so far: at .99 from the
        # first step on, a short run's teacher would be its random start for hundreds of steps.
        self._average = ModelEmaV3(encoder, decay=recipe.momentum, use_warmup=True, warmup_power=1.0)

    @property
    def encoder(self) -> ViTEncoder:
        """The teacher's current encoder."""
        encoder = self._average.module
        assert isinstance(encoder, ViTEncoder)
        return encoder

    def follow(self, encoder: ViTEncoder, step: int) -> None:
        """Update the moving average after a step, counted from 0."""
        self._average.update(encoder, step + 1)

    @torch.no_grad()
    def targets(self, crops: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b tokens d"]:
        """Target features of each patch of whole crops: mean of the last layers, each standardised."""
        encoder = self.encoder
        first = encoder.config.depth - self.layers
        tokens = encoder.before(crops, first)
        total = torch.zeros((), device=crops.device)
        for block in islice(encoder.blocks, first, None):
            tokens = block(tokens)
            total = total + self.normalised(tokens[:, 1:].float())
        return total / self.layers

    def state(self) -> dict[str, Any]:
        """Weights for the checkpoint."""
        return self.encoder.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the weights of `state`."""
        self.encoder.load_state_dict(state)


def _over_features(patches: Float[Tensor, "b tokens d"]) -> Float[Tensor, "b tokens d"]:
    return F.layer_norm(patches, patches.shape[-1:])


def _over_patches(patches: Float[Tensor, "b tokens d"]) -> Float[Tensor, "b tokens d"]:
    return F.instance_norm(patches.mT).mT


def distillation_loss(
    head: nn.Linear, reconstruction: Reconstruction, targets: Float[Tensor, "b tokens d"]
) -> Float[Tensor, ""]:
    """Sum over masked patches of the smooth L1 distance between student's and teacher's features.

    A sum, so that micro-batches and ranks add up; every crop hides as many patches, so the divisor is known.
    """
    error = F.smooth_l1_loss(head(reconstruction.tokens).float(), targets, reduction="none").mean(dim=-1)
    return (error * reconstruction.masked).sum()
