"""The transformer block: timm's, bit for bit, in values, gradients and initial weights."""

from __future__ import annotations

import pytest
import torch

from canvas_fm.models.encoder.block import Block
from canvas_fm.models.pretrained.torchvision_operators import declare_missing_operators


@pytest.mark.parametrize(("dim", "heads", "ratio"), [(24, 2, 4.0), (48, 3, 2.5), (384, 6, 4.0)])
def test_it_is_timms_block_bit_for_bit(dim: int, heads: int, ratio: float) -> None:
    declare_missing_operators()
    from timm.models.vision_transformer import Block as Reference

    torch.manual_seed(3)
    reference = Reference(dim, heads, mlp_ratio=ratio, qkv_bias=True)
    torch.manual_seed(3)
    block = Block(dim, heads, ratio)
    weights, theirs = block.state_dict(), reference.state_dict()
    assert list(weights) == list(theirs)
    assert all(torch.equal(weights[name], theirs[name]) for name in weights)
    for p in (*block.parameters(), *reference.parameters()):  # norms and biases that tell
        torch.manual_seed(p.numel())
        p.data = torch.randn_like(p) / p.shape[-1] ** 0.5
    x = torch.randn(3, 17, dim)
    ours, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, wanted = block(ours), reference(other)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    (got * x).sum().backward()
    (wanted * x).sum().backward()
    torch.testing.assert_close(ours.grad, other.grad, rtol=0, atol=0)
    for mine, his in zip(block.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, his.grad, rtol=0, atol=0)


def test_a_training_in_bf16_attends_as_one_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block, x, towards = Block(48, 3, 2.0), torch.randn(4, 65, 48), torch.randn(4, 65, 48)
    block.attn.qkv.weight.data *= 4  # attention that is not flat
    gradients = {}
    for bf16 in (False, True):
        taken = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), monkeypatch.context() as patched:
            if bf16:  # its gradient is what is slow
                patched.delattr(torch.nn.functional, "scaled_dot_product_attention")
            (block.attn(taken) * towards).sum().backward()
        gradients[bf16] = taken.grad
    wrong = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
    assert wrong < 0.06
