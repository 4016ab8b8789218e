"""Linear classifier of embeddings: standardisation, one matrix product, class probabilities."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class LinearHead(nn.Module):
    """Embeddings (n, dim) to class probabilities (n, classes), rows summing to 1.

    `mean` and `scale` are those of the training rows. Two classes have one logit: that of the second.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.linear = nn.Linear(dim, 1 if classes == 2 else classes)

    def forward(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n classes"]:
        logits = self.linear((x - self.mean) / self.scale)
        if logits.shape[1] == 1:
            p = torch.sigmoid(logits)
            return torch.cat([1 - p, p], dim=1)
        return F.softmax(logits, dim=1)
