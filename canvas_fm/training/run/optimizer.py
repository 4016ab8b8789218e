"""Optimizer state: model, AdamW, schedule, moving average, random generator."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from canvas_fm.errors import CanvasError
from canvas_fm.models.device import pick_precision
from canvas_fm.training.recipe.recipe import AnyRecipe
from canvas_fm.training.run.batch_order import Batch
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.timm_import import CosineLRScheduler, ModelEmaV3, param_groups_weight_decay

_log = logging.getLogger(__name__)


class OptimizerState(ABC):
    """A model in training; subclasses implement the step: `MaeStep`, `DetectorStep`, `JointStep`."""

    losses: tuple[str, ...] = ("loss",)  # the names of what a step returns first, one number each

    def __init__(self, recipe: AnyRecipe, ranks: Ranks, module: nn.Module) -> None:
        self.ranks, self.device = ranks, ranks.device
        self.rows = ranks.local_rows(recipe.training.batch)
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

    @abstractmethod
    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """One step: (losses of the optimizer batch, gradient norm before clipping), on the device."""

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _update(self, step: int) -> Tensor:
        """Clip gradients and step; returns their norm before clipping."""
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
        """State for the checkpoint: everything that the next step depends on."""
        return {
            "device": self.device.type,
            "model": self.module.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state of `state`."""
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


def _optimizer(recipe: AnyRecipe, module: nn.Module) -> torch.optim.AdamW:
    """AdamW without weight decay on norms, biases and the class and mask tokens."""
    training = recipe.training
    tokens = [name for name, _ in module.named_parameters() if name.endswith("_token")]
    groups = param_groups_weight_decay(module, training.weight_decay, no_weight_decay_list=tokens)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=True)


def _schedule(recipe: AnyRecipe, optimizer: torch.optim.Optimizer) -> CosineLRScheduler:
    """Cosine schedule to the minimum after linear warm-up; a function of the step alone."""
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
