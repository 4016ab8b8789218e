"""Nets of heads beside their formulas in numpy, and the training of an MLP beside the loop written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import erf, expit, softmax

from canvas_fm.models.heads.linear import LinearHead
from canvas_fm.models.heads.nets import HeadNet, train_mlp


def random_weights(net: torch.nn.Module, seed: int = 0) -> dict[str, np.ndarray]:
    """Fill weights and buffers with chance; they come back in float64."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in (*net.parameters(), *net.buffers()):
            values.copy_(0.5 + torch.rand(values.shape, generator=random))
    return {name: values.double().numpy() for name, values in net.state_dict().items()}


@pytest.mark.parametrize("hidden", [0, 7])
def test_a_head_is_centred_features_times_a_matrix_or_two_with_an_exact_gelu_between(hidden):
    net = HeadNet(5, hidden)
    w = random_weights(net)
    x = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    y = (x - w["mean"]) @ w["first.weight"].T + w["first.bias"]
    if hidden:
        y = y * (1 + erf(y / math.sqrt(2))) / 2 @ w["last.weight"].T + w["last.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(net(torch.from_numpy(x)).numpy(), y[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_class_probabilities_are_those_of_standardised_rows(classes):
    head = LinearHead(4, classes)
    w = random_weights(head)
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    logits = (x - w["mean"]) / w["scale"] @ w["linear.weight"].T + w["linear.bias"]
    of_second = expit(logits[:, :1])
    expected = np.hstack([1 - of_second, of_second]) if classes == 2 else softmax(logits, axis=1)
    with torch.no_grad():
        np.testing.assert_allclose(head(torch.from_numpy(x)).numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("epochs", "least_steps"), [(3, 0), (1, 8)])
def test_an_mlp_is_trained_as_the_loop_written_out(epochs, least_steps):
    """AdamW, cosine to zero over all steps, cells weighted, dropout behind the GELU, each row once a pass."""
    x = torch.randn(21, 6, generator=torch.Generator().manual_seed(5))
    is_cell = (x[:, 0] > 0.5).float()
    settings = {"weight_decay": 0.3, "seed": 4, "dropout": 0.4, "batch": 8, "rate": 1e-2, "hidden": 5}
    state = torch.random.get_rng_state()
    first, last = train_mlp(x, is_cell, epochs=epochs, least_steps=least_steps, cell_weight=3.0, **settings)
    assert torch.equal(torch.random.get_rng_state(), state)
    steps = 3 * (3 if least_steps else epochs)  # 3 batches a pass; 8 steps are 3 passes
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        nets = [torch.nn.Linear(6, 5), torch.nn.Linear(5, 1)]
        optimizer = torch.optim.AdamW([p for net in nets for p in net.parameters()], weight_decay=0.3)
        for step in range(steps):
            if step % 3 == 0:
                order = torch.randperm(21)
            rows = order[8 * (step % 3) : 8 * (step % 3) + 8]
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / steps)) / 2
            inner = torch.nn.functional.dropout(torch.nn.functional.gelu(nets[0](x[rows])), 0.4)
            p = nets[1](inner)[:, 0].sigmoid()
            each = -3 * is_cell[rows] * p.log() - (1 - is_cell[rows]) * (1 - p).log()
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
    for fitted, expected in zip((first, last), nets, strict=True):
        assert not any(p.requires_grad for p in fitted.parameters())
        torch.testing.assert_close(fitted.weight, expected.weight.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(fitted.bias, expected.bias.detach(), rtol=1e-3, atol=1e-4)
