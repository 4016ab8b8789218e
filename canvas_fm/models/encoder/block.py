"""The transformer block of encoder and decoder: attention, then an MLP, each on the normed sum before it.

After Dosovitskiy et al. 2021. Names of weights, initial values and arithmetic are those of timm's `Block`
with `qkv_bias`, so stored weights fit either; a test compares them bit for bit. timm itself loads torchvision
and torch._dynamo, three CPU seconds that a short command would wait for.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6  # of every layer norm
_EXPLICIT = 257  # tokens up to which the attention's weights are small enough to be kept for the gradient


class Attention(nn.Module):
    """Multi-head self-attention; one matrix gives queries, keys and values of all heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        b, n, d = x.shape
        query, key, value = (
            self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        )
        attend = _attend if _trains_in_bf16(query) else F.scaled_dot_product_attention
        heads = attend(query, key, value)
        projected: Tensor = self.proj(heads.transpose(1, 2).reshape(b, n, d))
        return projected


def _trains_in_bf16(query: Float[Tensor, "b h n e"]) -> bool:
    """Whether torch's attention would take its slow gradient: in bf16 on a CPU, 5 to 10 times `_attend`'s."""
    return (
        query.requires_grad
        and query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and query.shape[-2] <= _EXPLICIT
    )


def _attend(
    query: Float[Tensor, "b h n e"], key: Float[Tensor, "b h n e"], value: Float[Tensor, "b h n e"]
) -> Float[Tensor, "b h n e"]:
    """Scaled dot-product attention in three products, with its weights in memory."""
    weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(dim=-1)
    return weights @ value


class Mlp(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """One layer of a transformer, pre-norm: tokens (b, n, dim) in and out."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
