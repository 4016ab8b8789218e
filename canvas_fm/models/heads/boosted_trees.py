"""Boosted trees as plain tensors, and heads that are a blend of several models on different columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from canvas_fm.models.heads.nets import HeadNet

_AT_ONCE = 2048


class TreeEnsemble(nn.Module):
    """A sum of decision trees: a row goes left where its value is at most the node's threshold.

    Trees are rows of node arrays, padded; a leaf points to itself, so that every row arrives after `depth`
    steps. Kept as tensors, so that they travel as safetensors and need no scikit-learn to be read.
    """

    feature: Int[Tensor, "trees nodes"]
    threshold: Float[Tensor, "trees nodes"]
    left: Int[Tensor, "trees nodes"]
    right: Int[Tensor, "trees nodes"]
    value: Float[Tensor, "trees nodes"]
    start: Tensor

    def __init__(self, trees: int, nodes: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros((trees, nodes), dtype=torch.int32))
        for name in ("threshold", "value"):
            self.register_buffer(name, torch.zeros((trees, nodes)))
        self.register_buffer("start", torch.zeros(()))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The logit of every row."""
        return torch.cat([self._sum(part) for part in x.split(_AT_ONCE)]) if len(x) else x.new_zeros(0)

    def _sum(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        trees = torch.arange(len(self.feature), device=x.device)
        node = torch.zeros((len(x), len(trees)), dtype=torch.long, device=x.device)
        for _ in range(self.depth):
            value = x.gather(1, self.feature[trees, node].long())
            goes_left = value <= self.threshold[trees, node]
            node = torch.where(goes_left, self.left[trees, node], self.right[trees, node]).long()
        # In double precision, as the trees were grown: of hundreds of small steps single loses digits.
        return (self.value[trees, node].double().sum(dim=1) + self.start.double()).to(x.dtype)


class BlendNet(nn.Module):
    """A weighted sum of the calibrated logits of several models, each on columns of its own.

    `scale` holds slope and offset of each part's logits, by which they mean the same; `calibration` is the
    head's, as in HeadNet.
    """

    weight: Tensor
    scale: Tensor
    calibration: Tensor

    def __init__(
        self,
        parts: Sequence[HeadNet | TreeEnsemble],
        columns: Sequence[Sequence[int]],
        knots: int = 1,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.columns = [list(of) for of in columns]
        self.register_buffer("weight", torch.ones(len(parts)) / len(parts))
        self.register_buffer("scale", torch.tensor([[1.0], [0.0]]).repeat(1, len(parts)))
        self.register_buffer("calibration", torch.zeros(2, knots))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The logit of every row."""
        total = x.new_zeros(len(x))
        for number, (part, columns) in enumerate(zip(self.parts, self.columns, strict=True)):
            slope, offset = self.scale[:, number]
            total = total + self.weight[number] * (slope * part(x[:, columns]) + offset)
        return total
