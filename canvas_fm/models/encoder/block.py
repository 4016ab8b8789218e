"""The transformer block of encoder and decoder: attention, then an MLP, each on the normed sum before it.

After Dosovitskiy et al. 2021. Names of weights, initial values and arithmetic are those of timm's `Block`
with `qkv_bias`, so stored weights fit either; a test compares them bit for bit. timm itself loads torchvision
and torch._dynamo, three CPU seconds that a short command would wait for.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
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
        return self.attend(self.qkv(x))

    def attend(self, qkv: Float[Tensor, "b n three_d"]) -> Float[Tensor, "b n d"]:
        """Projected heads of tokens whose queries, keys and values are side by side."""
        b, n, _ = qkv.shape
        query, key, value = (
            qkv.reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        )
        projected: Tensor = self.proj(_attend(query, key, value).transpose(1, 2).reshape(b, n, -1))
        return projected


def _attend(
    query: Float[Tensor, "b h q e"], key: Float[Tensor, "b h n e"], value: Float[Tensor, "b h n e"]
) -> Float[Tensor, "b h q e"]:
    """Scaled dot-product attention, in the form whose gradient is faster."""
    attend = _in_three_products if _trains_in_bf16(query, key) else F.scaled_dot_product_attention
    return attend(query, key, value)


def _trains_in_bf16(query: Float[Tensor, "b h q e"], key: Float[Tensor, "b h n e"]) -> bool:
    """Whether torch's attention would take its slow gradient: in bf16 on a CPU, 5 to 10 times as long."""
    return (
        query.requires_grad
        and query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and key.shape[-2] <= _EXPLICIT
    )


def _in_three_products(
    query: Float[Tensor, "b h q e"], key: Float[Tensor, "b h n e"], value: Float[Tensor, "b h n e"]
) -> Float[Tensor, "b h q e"]:
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


def some_tokens(
    block: Any, x: Float[Tensor, "b s d"], tokens: Int[Tensor, " n"] | slice
) -> Float[Tensor, "b n d"]:
    """Output of a block for some tokens, which attend to all; only they pass through the MLP."""
    attention = block.attn
    normed, residual = block.norm1(x), x[:, tokens]
    dim = residual.shape[-1]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(normed[:, tokens], weight[:dim], bias[:dim])
    both = F.linear(normed, weight[dim:], bias[dim:])
    heads = attention.num_heads
    q = rearrange(query, "b n (h c) -> b h n c", h=heads)
    k, v = rearrange(both, "b s (two h c) -> two b h s c", two=2, h=heads)
    attended = rearrange(_attend(q, k, v), "b h n c -> b n (h c)")
    residual = residual + attention.proj(attended)
    out: Tensor = residual + block.mlp(block.norm2(residual))
    return out


def repeated_tokens(
    block: Any, rows: Float[Tensor, "r d"], index: Int[Tensor, "b n"]
) -> Float[Tensor, "b n d"]:
    """Output of a block for tokens that are rows of a table, many of them in several crops.

    Norm, queries, keys and values are worked out once a row.
    """
    qkv = block.attn.qkv(block.norm1(rows))
    x = F.embedding(index, rows) + block.attn.attend(F.embedding(index, qkv))
    out: Tensor = x + block.mlp(block.norm2(x))
    return out
