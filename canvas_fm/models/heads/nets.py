"""Nets of heads: from a feature vector to the logit of being a cell."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float32
from torch import Tensor, nn

_AT_ONCE = 65_536


class HeadNet(nn.Module):
    """Centred features, then one linear layer (`hidden` 0), or two with a GELU between.

    What was fitted beside it, whitening and principal components, is folded into the first layer.
    `calibration` are the numbers by which logits become probabilities; they travel with the weights.
    """

    mean: Tensor
    calibration: Tensor

    def __init__(self, dim: int, hidden: int = 0, knots: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("calibration", torch.zeros(2, knots))
        self.first = nn.Linear(dim, hidden or 1)
        self.last = nn.Linear(hidden, 1) if hidden else None

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Logit of each row (n, d) → (n,)."""
        y = self.first(x - self.mean)
        if self.last is not None:
            y = self.last(nn.functional.gelu(y))
        return rearrange(y, "n 1 -> n")


def logits_of(
    net: nn.Module, rows: Float[np.ndarray, "n d"], device: torch.device
) -> Float32[np.ndarray, " n"]:
    """Logits of rows by a head's net, some ten thousand at a time."""
    net = net.to(device)
    out = np.empty(len(rows), np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), _AT_ONCE):
            part = torch.from_numpy(np.ascontiguousarray(rows[start : start + _AT_ONCE]))
            out[start : start + _AT_ONCE] = net(part.to(device)).cpu().numpy()
    return out


def train_mlp(
    x: Float[Tensor, "n d"],
    is_cell: Float[Tensor, " n"],
    *,
    hidden: int,
    epochs: int,
    weight_decay: float,
    cell_weight: float,
    seed: int,
    dropout: float = 0.2,
    batch: int = 256,
    rate: float = 1e-3,
    least_steps: int = 200,
) -> tuple[nn.Linear, nn.Linear]:
    """Fit a two-layer MLP by AdamW with a cosine schedule on the device of `x`; reproducible by seed.

    A cell's loss counts `cell_weight` times. Few rows are gone through more often than `epochs` times, until
    `least_steps` are done.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(seed)
        first, last = nn.Linear(x.shape[1], hidden).to(x.device), nn.Linear(hidden, 1).to(x.device)
        net = nn.Sequential(first, nn.GELU(), nn.Dropout(dropout), last)
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=weight_decay)
        each = -(-len(x) // batch)
        epochs = max(epochs, -(-least_steps // each))
        steps = epochs * each
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(cell_weight, device=x.device))
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).to(x.device).split(batch):
                optimizer.zero_grad()
                loss(rearrange(net(x[rows]), "b 1 -> b"), is_cell[rows]).backward()
                optimizer.step()
                schedule.step()
    return first.eval().requires_grad_(False), last.eval().requires_grad_(False)
