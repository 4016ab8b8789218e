"""Losses that compare two views, against loops; what the projector is given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from canvas_fm.models.encoder.joint_embedding import (
    JointEmbedder,
    ProjectorConfig,
    centre_first,
    contrastive_loss,
    vicreg_loss,
)
from canvas_fm.models.encoder.mae import MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig, patchify, unpatchify
from canvas_fm.models.folder.network_config import DecoderConfig

TINY = EncoderConfig(crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=24, depth=1, heads=2)
LOSSES: list[Callable[..., Tensor]] = [contrastive_loss, vicreg_loss]


def pairs(n: int = 5, e: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(n, e, generator=generator, dtype=torch.float64)
    return first, first + 0.3 * torch.randn(n, e, generator=generator, dtype=torch.float64)


def slow_contrastive(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """View by view: minus its twin's cosine, plus the log of the sum over all other places' views."""
    views = [*first, *second]
    n, total = len(first), 0.0
    for i, view in enumerate(views):
        cosines = [v @ view / np.linalg.norm(v) / np.linalg.norm(view) / temperature for v in views]
        others = [np.exp(c) for j, c in enumerate(cosines) if j % n != i % n]
        total += np.log(sum(others)) - cosines[(i + n) % (2 * n)]
    return total / len(views)


def slow_vicreg(first: np.ndarray, second: np.ndarray) -> float:
    total = 25 * ((first - second) ** 2).mean()
    for side in (first, second):
        cov = np.cov(side, rowvar=False)
        columns = range(len(cov))
        total += 25 / 2 * np.mean([max(0, 1 - np.sqrt(cov[k, k] + 1e-4)) for k in columns])
        total += sum(cov[j, k] ** 2 for j in columns for k in columns if j != k) / len(cov)
    return float(total)


def test_the_contrastive_loss_is_that_of_a_loop() -> None:
    first, second = pairs()
    for temperature in (0.1, 0.5):
        expected = slow_contrastive(first.numpy(), second.numpy(), temperature)
        assert contrastive_loss(first, second, temperature=temperature).item() == pytest.approx(expected)


def test_places_of_other_volumes_are_no_negatives() -> None:
    """The loss of two volumes at once is the mean of each one's, however far apart the two lie."""
    first, second = pairs(7)
    volume = torch.tensor([4, 9, 4, 9, 9, 4, 4])
    loss = contrastive_loss(first, second, group=volume)
    parts = [(first[volume == v], second[volume == v]) for v in (4, 9)]
    alone = [slow_contrastive(a.numpy(), b.numpy(), 0.2) * len(a) for a, b in parts]
    assert loss.item() == pytest.approx(sum(alone) / 7)
    assert loss.item() != pytest.approx(contrastive_loss(first, second).item(), rel=1e-2)


def test_vicreg_is_that_of_a_loop() -> None:
    first, second = pairs(6)
    assert vicreg_loss(first, second).item() == pytest.approx(slow_vicreg(first.numpy(), second.numpy()))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_finite_differences(loss: Callable[..., Tensor]) -> None:
    first, second = pairs(4)
    assert torch.autograd.gradcheck(loss, (first.requires_grad_(), second.requires_grad_()))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_collapsed_projection_costs_more_than_one_that_tells_places_apart(
    loss: Callable[..., Tensor],
) -> None:
    first, second = pairs(8, 4)
    collapsed = torch.ones_like(first)
    assert loss(collapsed, collapsed) > loss(first, first)
    assert loss(first, second.roll(1, 0)) > loss(first, second)


def test_the_centres_patches_come_first_and_none_comes_twice() -> None:
    model = JointEmbedder(TINY, ProjectorConfig(hidden=8, dim=4))
    visible = centre_first(model.encoder, 5, 20, generator=torch.Generator().manual_seed(0))
    centre = model.encoder.centre_tokens
    assert visible.shape == (5, 20)
    assert (visible[:, : len(centre)].sort(dim=1).values == centre).all()
    assert all(len(row.unique()) == 20 for row in visible)
    assert len({tuple(row.tolist()) for row in visible[:, len(centre) :].sort(dim=1).values}) > 1
    again = centre_first(model.encoder, 5, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, visible)


def test_the_projector_has_the_sizes_asked_for_and_sees_the_mean_of_the_centre_alone() -> None:
    model = JointEmbedder(TINY, ProjectorConfig(hidden=8, dim=4)).eval()
    assert [layer.out_features for layer in model.projector if isinstance(layer, torch.nn.Linear)] == [
        8,
        8,
        4,
    ]
    tokens = torch.randn(3, 21, 24, generator=torch.Generator().manual_seed(0))
    first = [
        tokens[:, 1 + place] for place in range(len(model.encoder.centre_tokens))
    ]  # after the class token
    with torch.inference_mode():
        torch.testing.assert_close(model.project(tokens), model.projector(sum(first) / len(first)))


def test_what_a_view_hides_does_not_change_its_projection() -> None:
    model = JointEmbedder(TINY, ProjectorConfig(hidden=8, dim=4)).eval()
    visible = centre_first(model.encoder, 2, 20, generator=torch.Generator().manual_seed(0))
    crops = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    patches = patchify(crops, TINY.patch_zyx)
    hidden = torch.ones(2, 64, dtype=torch.bool).scatter(1, visible, False)
    other = unpatchify(torch.where(hidden[..., None], 1 - patches, patches), TINY.grid_zyx, TINY.patch_zyx)
    seen = unpatchify(torch.where(hidden[..., None], patches, 1 - patches), TINY.grid_zyx, TINY.patch_zyx)
    with torch.inference_mode():
        before = model(crops, visible)
        torch.testing.assert_close(model(other, visible), before)
        assert not torch.allclose(model(seen, visible), before)


@pytest.mark.parametrize("intensity", ["contrast", "window"])
def test_the_reconstruction_loss_is_the_mean_error_of_masked_patches_as_the_autoencoder_has_it(
    intensity: str,
) -> None:
    config = EncoderConfig(
        crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=24, depth=1, heads=2, intensity=intensity
    )
    torch.manual_seed(0)
    model = JointEmbedder(config, ProjectorConfig(hidden=8, dim=4), DecoderConfig(dim=12, depth=1, heads=2))
    mae = MaskedAutoencoder(config, DecoderConfig(dim=12, depth=1, heads=2))
    mae.encoder.load_state_dict(model.encoder.state_dict())
    assert model.decoder is not None
    mae.decoder.load_state_dict(model.decoder.state_dict())
    crops = torch.rand(3, 1, 8, 16, 16)
    visible = centre_first(model.encoder, 3, 20, generator=torch.Generator().manual_seed(1))
    loss = model.reconstruction_loss(model.encoder.tokens(crops, visible), crops, visible)
    result, target = mae(crops, visible=visible), mae.target(crops)
    shown = target.gather(1, visible[..., None].expand(-1, -1, target.shape[-1])).flatten(1)
    unit = shown.std(dim=1, unbiased=False)[:, None, None] if intensity == "contrast" else 1.0
    error = ((result.patches - target) / unit).square().mean(dim=-1)[result.masked]
    assert error.numel() == 3 * 44
    close = 0.03 if intensity == "contrast" else 1e-5  # the floor of a deviation
    assert loss.item() == pytest.approx(error.mean().item(), rel=close)
