"""A 3D ResNet trained end to end on labelled candidates, as a method of the comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError
from canvas_fm.heads.compare.methods import Fit, Predict, Training, fit_by, held_out_by
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
from canvas_fm.models.device import pick_device, pick_precision
from canvas_fm.models.heads.resnet import ResNet3D, ResNetConfig
from canvas_fm.training.mae.augment import draw, turn
from canvas_fm.training.recipe.recipe import AugmentRecipe

_AT_ONCE = 256
_FEW = 500  # labels


@dataclass
class ResNetClassifier:
    """3D ResNet with flips, quarter turns, noise and contrast changes; AdamW, cosine schedule.

    `epochs` passes over the labels, but at least `least_steps` and at most `most_steps` steps of `batch`:
    twenty labels need many passes, twenty thousand few. Cells and others are drawn equally often, and the
    logit is then put back to how often cells are. The threshold is chosen on a held-out part of the
    training rows (up to 500: on each part in turn), by nets that have not seen it; the net that judges has
    seen all. Precision bf16 is that of judging, and on a GPU of training too.
    """

    config: ResNetConfig = field(default_factory=ResNetConfig)
    epochs: float = 20
    least_steps: int = 150
    most_steps: int = 2000
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    device: str = "auto"
    precision: str = "fp32"
    name: str = "3D ResNet"
    seeded: bool = True

    def __post_init__(self) -> None:
        if self.batch < 2 or self.least_steps < 1 or self.most_steps < self.least_steps or self.epochs <= 0:
            raise CanvasError(
                f"batch {self.batch}, epochs {self.epochs:g}, steps {self.least_steps} to {self.most_steps}: "
                "give a batch of at least 2, epochs above 0, and as many steps at most as at least"
            )

    def identity(self, fold: str) -> Mapping[str, Any]:
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        hyper_parameters = {
            name: value for name, value in settings.items() if name not in ("name", "device", "config")
        }
        return {"method": "ResNet", **hyper_parameters, **self.config.model_dump()}

    def fit(self, data: Training) -> Fit:
        """Fit; raises CanvasError if the training diverges."""

        def fit_one(rows: np.ndarray) -> Predict:
            return self._predict(data.pooled, self.train(data.pooled, rows, data.seed))

        # Of few labels one part would be a handful: a threshold needs them all, and they cost little.
        parts = None if len(data.rows) <= _FEW else 1
        held_out = held_out_by(data, fit_one, parts=parts)
        return fit_by(data, fit_one(data.rows), held_out)

    def steps(self, labels: int) -> int:
        """Number of optimizer steps for so many labels."""
        return int(np.clip(math.ceil(self.epochs * labels / self.batch), self.least_steps, self.most_steps))

    def train(self, pooled: PooledCandidates, rows: np.ndarray, seed: int) -> ResNet3D:
        """Train a net on labelled rows; reproducible by seed and device."""
        device = pick_device(self.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            net = ResNet3D(self.config).to(device)
        crops = _half(pooled, rows, self.config.crop_zyx)
        is_cell = torch.from_numpy(pooled.is_cell[rows])
        generator = torch.Generator().manual_seed(seed)
        steps = self.steps(len(rows))
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=steps, pct_start=0.15
        )
        net.train()
        for _ in range(steps):
            batch = balanced_rows(is_cell, self.batch, generator)
            views = augmented(crops[batch].float(), generator).to(device)
            # On a CPU the gradient of a 3D convolution's weights in bf16 now and then is not finite.
            with self._autocast(device) if device.type == "cuda" else nullcontext():
                logit = net(views)
            loss = F.binary_cross_entropy_with_logits(logit.float(), is_cell[batch].float().to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if not math.isfinite(loss.item()):
            raise CanvasError("the 3D ResNet's training diverged; give a smaller learning rate")
        share = float(is_cell.float().mean())
        with torch.no_grad():  # it saw as many cells as others
            net.head.bias.add_(math.log(share / (1 - share)))
        return net.eval()

    def _predict(self, pooled: PooledCandidates, net: ResNet3D) -> Predict:
        device = next(net.parameters()).device

        @torch.inference_mode()
        def predict(rows: np.ndarray) -> np.ndarray:
            out = np.empty(len(rows))
            for first in range(0, len(rows), _AT_ONCE):
                crops = pooled.crops(rows[first : first + _AT_ONCE], self.config.crop_zyx)
                with self._autocast(device):
                    logit = net(torch.from_numpy(crops)[:, None].to(device))
                out[first : first + _AT_ONCE] = torch.sigmoid(logit.float()).cpu().numpy()
            return out

        return predict

    def _autocast(self, device: torch.device) -> torch.autocast:
        dtype = pick_precision(self.precision, device)
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _half(pooled: PooledCandidates, rows: np.ndarray, crop_zyx: Zyx) -> Tensor:
    """All training crops as float16, whose rounding is below their noise."""
    out = torch.empty((len(rows), *crop_zyx), dtype=torch.float16)
    for first in range(0, len(rows), _AT_ONCE):
        part = rows[first : first + _AT_ONCE]
        out[first : first + _AT_ONCE] = torch.from_numpy(pooled.crops(part, crop_zyx))
    return out


def balanced_rows(is_cell: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Row indices of a class-balanced batch."""
    parts = []
    for kind, count in ((is_cell, batch // 2), (~is_cell, batch - batch // 2)):
        rows = torch.nonzero(kind)[:, 0]
        parts.append(rows[torch.randint(len(rows), (count,), generator=generator)])
    return torch.cat(parts)


def augmented(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Augmented crops (b, 1, z, y, x) in [0, 1]: turns, flips, noise, contrast."""
    shape = (crops.shape[1], crops.shape[2], crops.shape[3])
    chance = draw(AugmentRecipe(noise=0.02), len(crops), shape, generator)
    gain = torch.exp(0.4 * (2 * torch.rand(len(crops), 1, 1, 1, 1, generator=generator) - 1))
    noise = 0.0 if chance.noise is None else chance.noise
    return (turn(crops, chance)[:, None] * gain + noise).clamp_(0, 1)
