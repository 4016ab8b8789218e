"""One optimizer step of the masked autoencoder; the loss itself is in `models.encoder.mae`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from canvas_fm.models.encoder.mae import (
    LossTarget,
    MaskedAutoencoder,
    Reconstruction,
    content_aware_loss,
    content_weights,
    loss_target,
    masked_count,
    masked_tokens,
    random_mask,
)
from canvas_fm.models.encoder.vit import take_tokens
from canvas_fm.training.mae.augment import augment, draw
from canvas_fm.training.mae.self_distillation import Student, Teacher, distillation_loss
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.batch_order import Batch
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.optimizer import OptimizerState


class MaeStep(OptimizerState):
    """A masked autoencoder in training; each call is one optimizer step without device synchronisation."""

    def __init__(self, recipe: Recipe, ranks: Ranks, mean_variance: float | None = None) -> None:
        mae, distil = new_model(recipe), recipe.distil
        super().__init__(recipe, ranks, mae if distil is None else Student(mae, recipe.seed))
        self.recipe = recipe
        self.teacher = None if distil is None else Teacher(distil, self.mae.encoder)
        if distil is not None:
            self.losses = ("loss", "distillation")
        self.fixed_variance = recipe.loss.mean_variance if mean_variance is None else mean_variance

    @property
    def mae(self) -> MaskedAutoencoder:
        """The trained model."""
        return _mae_of(self.module)

    @property
    def result(self) -> MaskedAutoencoder:
        """The model to evaluate and ship: the moving average if the recipe enables it."""
        return self.mae if self.averaged is None else _mae_of(self.averaged.module)

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """(losses of the optimizer batch, gradient norm before clipping), both on the device.

        `batch` are this rank's crops (b, z, y, x) as stored and their windows (b, 2), of two channels
        (b, c, z, y, x) and (b, c, 2); `step` counts from 0.
        The loss is Σ w·MSE / Σ w over the masked patches of all ranks and micro-batches, its scale the mean
        variance of all their patches. Both sums stand before the first backward pass, so every part adds its
        share of the one gradient. With a teacher there are two losses (2,), of which the second, the mean
        over the same patches, is added to the first with its weight.
        """
        crops, visible = self._draw(*batch)
        masked = masked_tokens(visible, self.recipe.model.encoder.tokens)
        loss = self.recipe.loss
        channels = self.recipe.model.encoder.channels
        target = loss_target(self.mae.target(crops), visible, loss.error, channels)
        mean_variance = self._mean_variance(target)
        target = target.at(masked)
        weights = content_weights(target, alpha=loss.alpha, gamma=loss.gamma, mean_variance=mean_variance)
        total = self.ranks.sum(weights.sum())

        losses = torch.zeros(len(self.losses), device=self.device)
        size = self.recipe.training.micro_batch or len(crops)
        for start in range(0, len(crops), size):
            rows = slice(start, start + size)
            with self._autocast():
                reconstruction = self.mae.masked_patches(crops[rows], visible[rows], masked[rows])
            summed, _ = content_aware_loss(
                reconstruction.patches,
                target.rows(rows),
                alpha=loss.alpha,
                gamma=loss.gamma,
                mean_variance=mean_variance,
            )
            share = summed / total
            losses[0] += share.detach()
            if self.teacher is not None:
                distillation = self._distillation(self.teacher, crops[rows], masked[rows], reconstruction)
                losses[1] += distillation.detach()
                share = share + self.teacher.weight * distillation
            share.backward()
        self.ranks.sum_all([losses, *(p.grad for p in self.parameters if p.grad is not None)])
        norm = self._update(step)
        if self.teacher is not None:
            self.teacher.follow(self.mae.encoder, step)
        return losses.squeeze(), norm

    def state(self) -> dict[str, Any]:
        """State for the checkpoint: everything that the next step depends on."""
        taught = {} if self.teacher is None else {"teacher": self.teacher.state()}
        return super().state() | taught

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state of `state`."""
        super().load_state(state)
        if self.teacher is not None:
            self.teacher.load_state(state["teacher"])

    def _distillation(
        self, teacher: Teacher, crops: Tensor, masked: Tensor, reconstruction: Reconstruction
    ) -> Tensor:
        """This rank's share of the mean distillation loss over the batch's masked patches."""
        assert isinstance(self.module, Student)
        with self._autocast():
            targets = take_tokens(teacher.targets(crops), masked)
            summed = distillation_loss(self.module.head, reconstruction, targets)
        model = self.recipe.model
        hidden = masked_count(model.mask_ratio, model.encoder.tokens)
        return summed / (self.recipe.training.batch * hidden)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _draw(self, raw: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's augmented crops and visible tokens; random numbers drawn for the whole batch."""
        model, batch = self.recipe.model, self.recipe.training.batch
        encoder = model.encoder
        drawn = draw(self.recipe.augment, batch, encoder.crop_zyx, self.generator, encoder.channels)
        visible, _ = random_mask(batch, model.encoder.tokens, model.mask_ratio, generator=self.generator)
        return augment(raw, windows, drawn.rows(self.rows)), visible[self.rows]

    def _mean_variance(self, target: LossTarget) -> Tensor | float:
        """σ̄²: mean patch variance over the whole optimizer batch, unless fixed by the recipe."""
        if self.fixed_variance is not None:
            return self.fixed_variance
        summed = self.ranks.sum(target.variance.sum())
        return summed / (self.recipe.training.batch * target.variance.shape[1])


def new_model(recipe: Recipe) -> MaskedAutoencoder:
    """The recipe's model initialised by the recipe's seed; torch's global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return MaskedAutoencoder(recipe.model.encoder, recipe.model.decoder)


def _mae_of(module: nn.Module) -> MaskedAutoencoder:
    mae = module.mae if isinstance(module, Student) else module
    assert isinstance(mae, MaskedAutoencoder)
    return mae
