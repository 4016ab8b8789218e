"""One optimizer step of a joint-embedding pretraining: two views of each position, one loss."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from canvas_fm.errors import CanvasError
from canvas_fm.models.encoder.joint_embedding import (
    JointEmbedder,
    centre_first,
    contrastive_loss,
    vicreg_loss,
)
from canvas_fm.models.load_model import load
from canvas_fm.training.joint.views import make_views
from canvas_fm.training.mae.augment import widen
from canvas_fm.training.recipe.joint_recipe import JointLoss, JointRecipe
from canvas_fm.training.run.batch_order import Batch
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.optimizer import OptimizerState


class JointStep(OptimizerState):
    """A joint embedder in training; each call takes raw boxes and does not synchronise with the device."""

    def __init__(self, recipe: JointRecipe, ranks: Ranks) -> None:
        if ranks.size > 1:
            raise CanvasError(
                f"{ranks.size} processes: the loss compares all views of a batch with each other, so a joint "
                "pretraining runs in one process; start it without torchrun"
            )
        super().__init__(recipe, ranks, new_embedder(recipe))
        self.recipe = recipe
        if recipe.loss.reconstruction:
            self.losses = ("loss", "joint", "reconstruction")

    @property
    def result(self) -> JointEmbedder:
        """The model to evaluate and ship: the moving average if the recipe enables it."""
        model = self.module if self.averaged is None else self.averaged.module
        assert isinstance(model, JointEmbedder)
        return model

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """(losses, gradient norm before clipping), both on the device: one loss, or sum and parts (3,).

        `batch` are boxes (b, bz, by, bx) as stored, their windows (b, 2) and volumes (b,), which may be left
        out where negatives are of all; `step` counts from 0.
        """
        assert isinstance(self.module, JointEmbedder)
        raw, windows, *volumes = batch
        group = volumes[0] if self.recipe.loss.negatives == "volume" else None
        losses = joint_losses(
            self.module, self.recipe, raw, windows, self.generator, self.precision, group=group
        )
        losses[0].backward()
        return losses.detach().squeeze(), self._update(step)


def joint_losses(
    model: JointEmbedder,
    recipe: JointRecipe,
    raw: Tensor,
    windows: Float[Tensor, "b 2"],
    generator: torch.Generator,
    precision: torch.dtype = torch.float32,
    *,
    group: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, " losses"]:
    """Loss of two random views of every box, with random visible patches: (1,), or sum and parts (3,).

    The parts are the joint embedding's loss and the reconstruction's, which has its weight in the sum. With
    `group` negatives are of the same group only.
    """
    views, visible = _draw(model, recipe, raw, windows, generator)
    with _autocast(raw, precision):
        tokens = model.encoder.tokens(views, visible)
        first, second = model.project(tokens).float().chunk(2)
    joint = _loss(recipe.loss, first, second, group)
    if model.decoder is None:
        return joint[None]
    with _autocast(raw, precision):
        reconstruction = model.reconstruction_loss(tokens, views, visible)
    return torch.stack([joint + recipe.loss.reconstruction * reconstruction, joint, reconstruction])


def project(
    model: JointEmbedder,
    recipe: JointRecipe,
    raw: Tensor,
    windows: Float[Tensor, "b 2"],
    generator: torch.Generator,
    precision: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b e"]]:
    """Projections of two views of every box."""
    views, visible = _draw(model, recipe, raw, windows, generator)
    with _autocast(raw, precision):
        first, second = model(views, visible).float().chunk(2)
    return first, second


def _draw(
    model: JointEmbedder,
    recipe: JointRecipe,
    raw: Tensor,
    windows: Float[Tensor, "b 2"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "bb 1 z y x"], Int[Tensor, "bb k"]]:
    """Two views of every box, first views first, and the visible patches of each."""
    low, scale = windows[:, :, None, None, None, None].unbind(dim=1)
    boxes = (widen(raw)[:, None] - low) * scale
    crop_zyx = recipe.model.encoder.crop_zyx
    views = torch.cat([make_views(boxes, crop_zyx, recipe.views, generator) for _ in range(2)])
    visible = centre_first(model.encoder, len(views), recipe.model.visible, generator=generator)
    return views, visible


def _autocast(raw: Tensor, precision: torch.dtype) -> torch.autocast:
    return torch.autocast(raw.device.type, precision, enabled=precision != torch.float32)


def _loss(loss: JointLoss, first: Tensor, second: Tensor, group: Tensor | None) -> Float[Tensor, ""]:
    if loss.kind == "contrastive":
        return contrastive_loss(first, second, temperature=loss.temperature, group=group)
    weights = {"invariance": loss.invariance, "variance": loss.variance, "covariance": loss.covariance}
    return vicreg_loss(first, second, **weights)


def new_embedder(recipe: JointRecipe) -> JointEmbedder:
    """The recipe's model initialised by the recipe's seed; torch's global generator is untouched.

    Its encoder has the weights of `recipe.start` where there is one; CanvasError if that is of another
    architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        decoder = recipe.model.decoder if recipe.loss.reconstruction else None
        embedder = JointEmbedder(recipe.model.encoder, recipe.model.projector, decoder)
    if recipe.start is not None:
        start = load(recipe.start, kind="encoder")
        wanted = recipe.model.encoder
        known = start.config.architecture.model_copy(update={"descriptors": None})  # fitted anew at the end
        if known not in (wanted, wanted.model_copy(update={"levels": False})):
            raise CanvasError(
                f"start {recipe.start} is an encoder of {start.config.architecture}, and model.encoder is "
                f"{wanted}; give the same, or leave start out"
            )
        if embedder.encoder.level_embed is not None and start.net.level_embed is None:
            nn.init.zeros_(embedder.encoder.level_embed.weight)  # it begins as what it starts from
        embedder.encoder.load_state_dict(start.net.state_dict(), strict=False)
    return embedder
