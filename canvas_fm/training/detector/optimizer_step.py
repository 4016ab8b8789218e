"""One optimizer step of a detector: joint augmentation of voxels and labels, focal loss."""

from __future__ import annotations

import copy
import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from canvas_fm.errors import CanvasError
from canvas_fm.models.detector.convmixer import HeatMapNet, focal_loss
from canvas_fm.models.load_model import Detector, load
from canvas_fm.training.detector.targets import CELL, UNLABELLED
from canvas_fm.training.mae.augment import draw, turn, widen
from canvas_fm.training.recipe.detector_recipe import DetectorAugment, DetectorRecipe
from canvas_fm.training.run.batch_order import Batch
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.optimizer import OptimizerState


class DetectorStep(OptimizerState):
    """A detector in training; each call is one optimizer step and does not synchronise with the device.

    With `net` that one goes on, as far as its weights take gradients; else the recipe's starts.
    """

    def __init__(self, recipe: DetectorRecipe, ranks: Ranks, net: HeatMapNet | None = None) -> None:
        super().__init__(recipe, ranks, new_net(recipe) if net is None else net)
        self.recipe = recipe

    @property
    def result(self) -> HeatMapNet:
        """The net to evaluate and ship: the moving average if the recipe enables it."""
        net = self.module if self.averaged is None else self.averaged.module
        assert isinstance(net, HeatMapNet)
        return net

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """(loss of the optimizer batch, gradient norm before clipping), both on the device.

        `batch` are this rank's crops (b, c, z, y, x) as stored, windows (b, c, 2) and labels (b, z, y, x).
        The loss is the focal loss summed over labelled voxels, divided by the voxels that are cell, of all
        ranks and micro-batches. Batch norms take their statistics over a micro-batch.
        """
        voxels, labels = self._augmented(*batch)
        known, cell = (labels != UNLABELLED).float(), (labels == CELL).float()
        counted = self.ranks.sum(torch.stack([cell.sum(), known.sum()]))
        total = torch.maximum(counted[0], self.recipe.loss.floor * counted[1]).clamp_min(1)
        loss = torch.zeros((), device=self.device)
        size = self.recipe.training.micro_batch or len(voxels)
        for start in range(0, len(voxels), size):
            rows = slice(start, start + size)
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                logits = self.module(voxels[rows])
            each = focal_loss(
                logits.float(), cell[rows], alpha=self.recipe.loss.alpha, gamma=self.recipe.loss.gamma
            )
            share = (each * known[rows]).sum() / total
            share.backward()
            loss += share.detach()
        self.ranks.sum_all([loss, *(p.grad for p in self.parameters if p.grad is not None)])
        return loss, self._update(step)

    def _augmented(
        self, raw: Tensor, windows: Tensor, labels: UInt8[Tensor, "b z y x"]
    ) -> tuple[Float[Tensor, "b c z y x"], UInt8[Tensor, "b z y x"]]:
        """This rank's crops and labels, flipped and turned alike; random numbers of the whole batch."""
        recipe, batch = self.recipe.augment, self.recipe.training.batch
        drawn = draw(recipe, batch, self.recipe.data.crop_zyx, self.generator, raw.shape[1])
        brightness = Brightness(recipe, batch, self.generator)
        mine = drawn.rows(self.rows)
        channels = [
            brightness.apply(turn(raw[:, c], mine), windows[:, c], self.rows) for c in range(raw.shape[1])
        ]
        voxels = torch.stack(channels, dim=1)
        if mine.noise is not None:
            voxels += brightness.noise[self.rows] * mine.noise
        return voxels.clamp_(0, 1), turn(labels, mine)


class Brightness:
    """Random brightness changes of each crop of a batch: gain, offset, gamma."""

    def __init__(self, recipe: DetectorAugment, batch: int, generator: torch.Generator) -> None:
        def evenly(low: float, high: float) -> Float[Tensor, "b 1 1 1"]:
            drawn = torch.rand(batch, 1, 1, 1, generator=generator, device=generator.device)
            return low + (high - low) * drawn

        self.gain = evenly(-math.log(recipe.gain), math.log(recipe.gain)).exp()
        self.gamma = evenly(-math.log(recipe.gamma), math.log(recipe.gamma)).exp()
        self.offset = evenly(-recipe.offset, recipe.offset)
        self.noise = evenly(0.0, 1.0)[:, None]

    def apply(self, raw: Tensor, windows: Float[Tensor, "b 2"], part: slice) -> Float[Tensor, "b z y x"]:
        """Window crops and change their brightness, clipped to [0, 1] at the end only.

        A gain below 1 brings back what the window would have clipped: that is how a dimmer volume looks.
        """
        low, scale = windows[:, :, None, None, None].unbind(dim=1)
        voxels = (widen(raw) - low) * scale
        voxels = (voxels * self.gain[part] + self.offset[part]).clamp_(0, 1)
        return voxels ** self.gamma[part]


def new_net(recipe: DetectorRecipe) -> HeatMapNet:
    """The recipe's net initialised by the recipe's seed; torch's global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = HeatMapNet(recipe.model)
    if recipe.starts:
        net.load_state_dict(started_from(recipe)[0].state_dict())
    net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return net


def started_from(recipe: DetectorRecipe) -> tuple[HeatMapNet, list[Detector]]:
    """The net that a training starts from, and the detectors whose weights it has or is the average of."""
    detectors = [load(start, kind="detector") for start in recipe.starts]
    for name, detector in zip(recipe.starts, detectors, strict=True):
        if detector.config.architecture != recipe.model:
            raise CanvasError(
                f"{name} has the architecture {detector.config.architecture}, and the recipe {recipe.model}; "
                "start from a detector of the same"
            )
    net = detectors[0].net
    for number, detector in enumerate(detectors[1:], 1):
        net = averaged_weights(net, detector.net, number / (number + 1))
    return net, detectors


def averaged_weights(first: HeatMapNet, second: HeatMapNet, share: float) -> HeatMapNet:
    """A net whose weights, and norms' statistics, are `share` of the first's and the rest of the second's.

    Between weights before and after a fine-tuning it keeps what both do well: Wortsman et al. 2022, "Robust
    fine-tuning of zero-shot models" (WiSE-FT).
    """
    before, after = first.state_dict(), second.state_dict()
    net = copy.deepcopy(second)
    net.load_state_dict(
        {
            name: torch.lerp(value, before[name].to(value), share) if value.is_floating_point() else value
            for name, value in after.items()
        }
    )
    return net
