"""One optimizer step, and all the state that a step depends on."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from canvas_fm.errors import CanvasError
from canvas_fm.models.device import pick_precision
from canvas_fm.models.mae import (
    LossTarget,
    MaskedAutoencoder,
    Reconstruction,
    content_aware_loss,
    content_weights,
    loss_target,
    masked_count,
    random_mask,
)
from canvas_fm.training.mae.augment import augment, draw
from canvas_fm.training.mae.self_distillation import Student, Teacher, distillation_loss
from canvas_fm.training.recipe.recipe import AnyRecipe, Recipe
from canvas_fm.training.run.distributed import Ranks

from timm.optim import param_groups_weight_decay  # isort: skip  (after canvas_fm.models, which lets timm import)
from timm.scheduler import CosineLRScheduler  # isort: skip
from timm.utils import ModelEmaV3  # isort: skip

_log = logging.getLogger(__name__)


class Course:
    """A model on its way: optimizer, schedule, average and chance, all that a step's outcome depends on."""

    losses: tuple[str, ...] = ("loss",)  # the names of what a step returns first, one number each

    def __init__(self, recipe: AnyRecipe, ranks: Ranks, module: nn.Module) -> None:
        self.ranks, self.device = ranks, ranks.device
        self.part = ranks.part(recipe.training.batch)
        self.precision = pick_precision(recipe.training.precision, self.device)
        self.module = module.to(self.device)
        self.clip = recipe.training.clip
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.generator = torch.Generator(self.device).manual_seed(recipe.seed)
        self.optimizer = _optimizer(recipe, self.module)
        self.schedule = _schedule(recipe, self.optimizer)
        decay = recipe.training.ema
        if decay is not None and recipe.steps * (1 - decay) < 5:
            _log.warning(
                "training.ema %g averages the weights of about %.0f steps, and the run has only %d: what "
                "ships lags far behind; give more steps, or training.ema=null",
                decay,
                1 / (1 - decay),
                recipe.steps,
            )
        self.averaged = None if decay is None else ModelEmaV3(self.module, decay=decay)
        self.module.train()

    @property
    def learning_rate(self) -> float:
        """Of the step that was made last."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _update(self, step: int) -> Tensor:
        """Go a step along the gradients; returns their norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters, float("inf") if self.clip is None else self.clip
        )
        self.schedule.step_update(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averaged is not None:
            self.averaged.update(self.module)
        return norm

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, for the checkpoint."""
        return {
            "device": self.device.type,
            "model": self.module.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        if state["device"] != self.device.type:
            raise CanvasError(
                f"this run was made on {state['device']}, and its random numbers cannot go on on "
                f"{self.device.type}: give --device {state['device']}"
            )
        self.module.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.module.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])


class Stepper(Course):
    """Takes raw crops, makes one optimizer step, returns the loss without waiting for the device."""

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
        """The model that is trained."""
        return _mae_of(self.module)

    @property
    def result(self) -> MaskedAutoencoder:
        """The model that is evaluated and shipped: the averaged one where the recipe asks for it."""
        return self.mae if self.averaged is None else _mae_of(self.averaged.module)

    def __call__(self, raw: Tensor, windows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(losses of the whole optimizer batch, gradient norm before clipping), both still on the device.

        `raw` are this rank's crops (b, z, y, x) as stored, with their windows (b, 2); `step` counts from 0.
        The loss is Σ w·MSE / Σ w over the masked patches of all ranks and micro-batches, its scale the mean
        variance of all their patches. Both sums stand before the first backward pass, so every part adds its
        share of the one gradient. With a teacher there are two losses (2,), of which the second, the mean
        over the same patches, is added to the first with its weight.
        """
        crops, visible = self._draw(raw, windows)
        loss = self.recipe.loss
        target = loss_target(self.mae.target(crops), visible, loss.error)
        mean_variance = self._mean_variance(target)
        weights = content_weights(target, alpha=loss.alpha, gamma=loss.gamma, mean_variance=mean_variance)
        total = self.ranks.sum(weights.sum())

        losses = torch.zeros(len(self.losses), device=self.device)
        size = self.recipe.training.micro_batch or len(crops)
        for start in range(0, len(crops), size):
            rows = slice(start, start + size)
            with self._autocast():
                found = self.mae(crops[rows], visible=visible[rows])
            summed, _ = content_aware_loss(
                found.patches,
                target.rows(rows),
                alpha=loss.alpha,
                gamma=loss.gamma,
                mean_variance=mean_variance,
            )
            share = summed / total
            losses[0] += share.detach()
            if self.teacher is not None:
                aside = self._distillation(self.teacher, crops[rows], found)
                losses[1] += aside.detach()
                share = share + self.teacher.weight * aside
            share.backward()
        self.ranks.sum_all([losses, *(p.grad for p in self.parameters if p.grad is not None)])
        norm = self._update(step)
        if self.teacher is not None:
            self.teacher.follow(self.mae.encoder, step)
        return losses.squeeze(), norm

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, for the checkpoint."""
        taught = {} if self.teacher is None else {"teacher": self.teacher.state()}
        return super().state() | taught

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().load_state(state)
        if self.teacher is not None:
            self.teacher.load_state(state["teacher"])

    def _distillation(self, teacher: Teacher, crops: Tensor, found: Reconstruction) -> Tensor:
        """This part's share of the mean distance from the teacher over the batch's masked patches."""
        assert isinstance(self.module, Student)
        with self._autocast():
            summed = distillation_loss(self.module.head, found, teacher.targets(crops))
        model = self.recipe.model
        hidden = masked_count(model.mask_ratio, model.encoder.tokens)
        return summed / (self.recipe.training.batch * hidden)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _draw(self, raw: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's crops augmented, and their visible tokens; chance is drawn for the whole batch."""
        model, batch = self.recipe.model, self.recipe.training.batch
        drawn = draw(self.recipe.augment, batch, model.encoder.crop_zyx, self.generator)
        visible, _ = random_mask(batch, model.encoder.tokens, model.mask_ratio, generator=self.generator)
        return augment(raw, windows, drawn.rows(self.part)), visible[self.part]

    def _mean_variance(self, target: LossTarget) -> Tensor | float:
        """σ̄²: over all patches of the whole optimizer batch, unless it is fixed."""
        if self.fixed_variance is not None:
            return self.fixed_variance
        summed = self.ranks.sum(target.variance.sum())
        return summed / (self.recipe.training.batch * target.variance.shape[1])


def new_model(recipe: Recipe) -> MaskedAutoencoder:
    """The recipe's model, its weights drawn by the recipe's seed; torch's own generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return MaskedAutoencoder(recipe.model.encoder, recipe.model.decoder)


def _mae_of(module: nn.Module) -> MaskedAutoencoder:
    mae = module.mae if isinstance(module, Student) else module
    assert isinstance(mae, MaskedAutoencoder)
    return mae


def _optimizer(recipe: AnyRecipe, module: nn.Module) -> torch.optim.AdamW:
    """AdamW; norms, biases and the class and mask tokens do not decay."""
    training = recipe.training
    tokens = [name for name, _ in module.named_parameters() if name.endswith("_token")]
    groups = param_groups_weight_decay(module, training.weight_decay, no_weight_decay_list=tokens)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=True)


def _schedule(recipe: AnyRecipe, optimizer: torch.optim.Optimizer) -> CosineLRScheduler:
    """A cosine to the minimum over all steps after the warm-up; a function of the step alone."""
    training = recipe.training
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, recipe.steps - training.warmup_steps),
        lr_min=training.min_learning_rate,
        warmup_t=training.warmup_steps,
        warmup_lr_init=training.min_learning_rate,
        warmup_prefix=True,
        t_in_epochs=False,
    )
