"""The masked autoencoder and the content-aware loss: counts, no leak, a loop as oracle, overfitting."""

import numpy as np
import pytest
import torch

from canvas_fm.models.encoder.mae import (
    DecoderConfig,
    MaskedAutoencoder,
    content_aware_loss,
    content_weights,
    loss_target,
    masked_count,
    masked_tokens,
    random_mask,
)
from canvas_fm.models.encoder.vit import EncoderConfig, patchify, unpatchify

SMALL = EncoderConfig(crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=48, depth=2, heads=3)
SMALL_DECODER = DecoderConfig(dim=24, depth=1, heads=3)
PATCH_DECODER = DecoderConfig(dim=24, depth=1, heads=3, targets="patch")
CONTRAST = SMALL.model_copy(update={"intensity": "contrast"})


def some_visible(crops: int, ratio: float, seed: int) -> torch.Tensor:
    return random_mask(crops, 64, ratio, generator=torch.Generator().manual_seed(seed))[0]


@pytest.mark.parametrize(
    ("crop", "patch", "total"),
    [
        ((16, 32, 32), (4, 8, 8), 12_649_984),
        ((24, 48, 48), (6, 12, 12), 13_000_800),
        ((32, 64, 64), (8, 16, 16), 13_683_968),
    ],
)
def test_parameter_counts_are_the_papers(crop, patch, total):
    mae = MaskedAutoencoder(EncoderConfig(crop_zyx=crop, patch_zyx=patch))
    assert sum(p.numel() for p in mae.parameters()) == total


def test_the_paper_s_decoder_count():
    assert sum(p.numel() for p in MaskedAutoencoder().decoder.parameters()) == 1_903_360


def test_masked_counts_are_the_papers():
    assert [masked_count(m) for m in (0.15, 0.35, 0.55, 0.75)] == [10, 23, 36, 48]


def test_every_crop_has_its_own_mask_and_the_seed_decides_it():
    visible, masked = random_mask(50, 64, 0.75, generator=torch.Generator().manual_seed(0))
    again, _ = random_mask(50, 64, 0.75, generator=torch.Generator().manual_seed(0))
    assert torch.equal(visible, again)
    assert len({tuple(sorted(row.tolist())) for row in masked}) == 50
    assert torch.equal(torch.cat([visible, masked], 1).sort(1).values, torch.arange(64).expand(50, 64))


@pytest.mark.parametrize("config", [SMALL, CONTRAST], ids=["window", "contrast"])
def test_masked_voxels_do_not_leak_into_the_prediction(config):
    """Nor by way of the crop's mean and deviation, in which an encoder of contrast computes."""
    mae = MaskedAutoencoder(config, SMALL_DECODER).eval()
    crops = torch.rand(2, 1, 8, 16, 16)
    visible, masked = random_mask(2, 64, 0.75, generator=torch.Generator().manual_seed(1))
    patches = patchify(crops, SMALL.patch_zyx)
    changed = patches.clone()
    changed.scatter_(1, masked[..., None].expand(-1, -1, patches.shape[-1]), 0.123)
    changed = unpatchify(changed, (4, 4, 4), SMALL.patch_zyx)
    with torch.no_grad():
        first, second = mae(crops, visible=visible), mae(changed, visible=visible)
        torch.testing.assert_close(first.patches, second.patches, rtol=0, atol=0)
        assert first.masked.sum(1).tolist() == [48, 48]
        assert not first.masked.gather(1, visible).any()
        changed_seen = crops.clone()
        changed_seen[:] = 0.5
        assert not torch.equal(first.patches, mae(changed_seen, visible=visible).patches)


@pytest.mark.parametrize("config", [SMALL, CONTRAST], ids=["window", "contrast"])
def test_naming_the_visible_patches_in_another_order_changes_nothing(config):
    mae = MaskedAutoencoder(config, SMALL_DECODER).eval()
    crops = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    visible = some_visible(2, 0.75, seed=1)
    with torch.no_grad():
        first, turned = mae(crops, visible=visible), mae(crops, visible=visible.flip(1))
    torch.testing.assert_close(turned.patches, first.patches, rtol=0, atol=1e-5)
    assert torch.equal(turned.masked, first.masked)


def test_the_decoder_puts_every_token_in_its_place_and_the_mask_token_elsewhere():
    """Beside a loop over patches that fills the sequence of its blocks one place at a time."""
    decoder = MaskedAutoencoder(SMALL, SMALL_DECODER).decoder.eval()
    tokens = torch.randn(2, 10, 48, generator=torch.Generator().manual_seed(0))
    visible = some_visible(2, 0.85, seed=1)
    assert visible.shape == (2, 9)
    with torch.no_grad():
        for crop in range(2):
            given, places = decoder.embed(tokens[crop]), visible[crop].tolist()
            sequence = [given[0]]  # the class token, which has no place
            for place in range(64):
                seen = given[1 + places.index(place)] if place in places else decoder.mask_token[0, 0]
                sequence.append(seen + decoder.positions[place])
            x = torch.stack(sequence)[None]
            for block in decoder.blocks:
                x = block(x)
            found = decoder(tokens[crop : crop + 1], visible[crop : crop + 1])
            torch.testing.assert_close(found, decoder.norm(x)[:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("targets", ["window", "contrast", "patch"])
def test_masked_patches_alone_have_the_loss_and_gradients_of_all(targets, depth):
    """What a training computes beside what an evaluation does, in every unit of the error."""
    decoder = DecoderConfig(dim=24, depth=depth, heads=3, targets="patch" if targets == "patch" else "voxels")
    torch.manual_seed(0)
    mae = MaskedAutoencoder(CONTRAST if targets == "contrast" else SMALL, decoder)
    crops = torch.rand(3, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    visible, masked = random_mask(3, 64, 0.7, generator=torch.Generator().manual_seed(1))
    target = loss_target(mae.target(crops), visible, targets)
    found = []
    for alone in (False, True):
        made = mae.masked_patches(crops, visible, masked) if alone else mae(crops, visible=visible)
        top, bottom = content_aware_loss(
            made.patches, target.at(masked) if alone else target, mean_variance=target.variance.mean()
        )
        mae.zero_grad()
        (top / bottom).backward()
        found.append([top.detach(), bottom, *(p.grad.clone() for p in mae.parameters())])
    assert made.patches.shape == (3, 45, 32)
    assert made.masked.all()
    for whole, alone in zip(*found, strict=True):
        torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


def test_masked_patches_alone_leave_out_what_no_loss_needs():
    """The last block's MLP sees masked tokens only, and the first one's products each masked place once."""
    mae = MaskedAutoencoder(SMALL, SMALL_DECODER.model_copy(update={"depth": 2}))
    first, last, rows = mae.decoder.blocks[0].attn.qkv, mae.decoder.blocks[-1].mlp, []
    for module in (first, last):
        module.register_forward_hook(lambda _, given, __: rows.append(given[0][..., 0].numel()))
    visible, masked = random_mask(5, 64, 0.75, generator=torch.Generator().manual_seed(1))
    mae.masked_patches(torch.rand(5, 1, 8, 16, 16), visible, masked)
    assert rows == [5 * 17 + 64, 5 * 48]


def test_masked_tokens_are_all_that_are_not_visible():
    visible, masked = random_mask(4, 64, 0.6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(masked_tokens(visible, 64), masked.sort(dim=1).values)


def test_a_model_stores_its_weights_alone_and_its_norms_hold_for_faint_tokens():
    """Places follow from the sizes; the constant of the norms is 1e-6, as in the code of He et al."""
    net = MaskedAutoencoder(SMALL, SMALL_DECODER)
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}
    norms = [module for module in net.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * (len(net.encoder.blocks) + len(net.decoder.blocks)) + 2
    for norm in norms:
        faint = 0.01 * torch.randn(64, *norm.normalized_shape, generator=torch.Generator().manual_seed(0))
        assert 0.98 < norm(faint).std(unbiased=False) < 1


@pytest.mark.parametrize(
    ("config", "decoder"),
    [(SMALL, SMALL_DECODER), (CONTRAST, SMALL_DECODER), (SMALL, PATCH_DECODER)],
    ids=["window", "contrast", "patch"],
)
def test_the_head_answers_in_the_scale_of_its_targets(config, decoder):
    """A head that says 1 everywhere predicts mean + deviation: of the window, what is seen, or each patch."""
    mae = MaskedAutoencoder(config, decoder).eval()
    torch.nn.init.zeros_(mae.decoder.head.weight)
    torch.nn.init.ones_(mae.decoder.head.bias)
    crops = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    visible, patches = some_visible(2, 0.5, seed=1), mae.target(crops)
    with torch.no_grad():
        predicted = mae(crops, visible=visible).patches
    for crop in range(2):
        for token in range(64):
            seen = patches[crop, token] if decoder.targets == "patch" else patches[crop, visible[crop]]
            expected = seen.mean() + seen.std(correction=0)
            if config == SMALL and decoder == SMALL_DECODER:
                expected = torch.tensor(0.3)  # of a window's voxels .2 is the mean and .1 the deviation
            assert predicted[crop, token].numpy() == pytest.approx(float(expected), abs=1e-3)


def test_a_mask_is_drawn_by_the_generator_at_the_ratio_asked_for():
    mae = MaskedAutoencoder(SMALL, SMALL_DECODER).eval()
    crops = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = mae(crops, 0.35, generator=torch.Generator().manual_seed(5))
        given = mae(crops, visible=some_visible(2, 0.35, seed=5))
        assert mae(crops).masked.sum(1).tolist() == [48, 48]
    assert drawn.masked.sum(1).tolist() == [23, 23]
    assert torch.equal(drawn.masked, given.masked)
    assert torch.equal(drawn.patches, given.patches)


def test_decoder_sizes_that_do_not_fit_are_refused_and_its_mask_token_begins_small():
    for change in (
        {"dim": 20},
        {"dim": 20, "heads": 4},
        {"dim": 24, "heads": 5},
        {"depth": 0},
        {"heads": 0},
        {"dim": 0},
    ):
        with pytest.raises(ValueError, match="divisible by 6 and by heads"):
            DecoderConfig(**change)
    torch.manual_seed(0)
    decoder = MaskedAutoencoder(SMALL, SMALL_DECODER).decoder
    assert 0.005 < decoder.mask_token.std() < 0.04
    bound = (6 / (24 + 32)) ** 0.5  # Xavier-uniform, as every matrix
    assert 0.9 * bound < decoder.head.weight.abs().max() <= bound
    assert not decoder.head.bias.any()
    assert decoder.blocks[0].mlp.fc1.weight.shape == (96, 24)


def test_of_a_masked_patch_only_its_mean_and_deviation_are_given_to_patch_targets():
    """Its voxels in another order give the same prediction; brighter, they move its own and no other."""
    mae = MaskedAutoencoder(CONTRAST, PATCH_DECODER).eval()
    crops = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(6))
    visible, masked = random_mask(2, 64, 0.75, generator=torch.Generator().manual_seed(1))
    patches = patchify(crops, SMALL.patch_zyx)
    index = masked[..., None].expand(-1, -1, patches.shape[-1])

    def predicted(hidden: torch.Tensor) -> torch.Tensor:
        changed = unpatchify(patches.scatter(1, index, hidden), (4, 4, 4), SMALL.patch_zyx)
        with torch.no_grad():
            return mae(changed, visible=visible).patches

    hidden = patches.gather(1, index)
    before = predicted(hidden)
    torch.testing.assert_close(predicted(hidden.flip(2)), before, rtol=0, atol=1e-6)
    brighter = hidden.clone()
    brighter[:, 0] += 0.5
    moved = predicted(brighter) - before
    rows = torch.arange(2)
    torch.testing.assert_close(moved[rows, masked[:, 0]], torch.full((2, 32), 0.5), rtol=0, atol=1e-5)
    moved[rows, masked[:, 0]] = 0
    assert not moved.any()


def test_the_error_in_patch_deviations_is_that_of_normalised_targets_in_numpy():
    """He et al.'s loss, written down as they do: normalise the target, compare it with what the head says."""
    mae = MaskedAutoencoder(SMALL, PATCH_DECODER).eval()
    crops = torch.rand(3, 1, 8, 16, 16, generator=torch.Generator().manual_seed(7))
    crops[0] *= 0.02  # hardly varies: the floor under the deviation counts
    visible = some_visible(3, 0.75, seed=8)
    with torch.no_grad():
        found = mae(crops, visible=visible)
        said = mae.decoder.head(found.tokens).numpy().astype(np.float64)
    target = patchify(crops, SMALL.patch_zyx)
    top, bottom = content_aware_loss(found.patches, loss_target(target, visible, "patch"), mean_variance=0.05)
    wanted = total = 0.0
    for b, t in np.argwhere(found.masked.numpy()):
        voxels = target[b, t].numpy().astype(np.float64)
        normalised = (voxels - voxels.mean()) / np.sqrt(voxels.var() + 0.005**2)
        weight = 1 + 9 * min(1.0, voxels.var() / 0.05)
        wanted += weight * np.mean((said[b, t] - normalised) ** 2)
        total += weight
    assert float(top) == pytest.approx(wanted, rel=1e-4)
    assert float(bottom) == pytest.approx(total, rel=1e-5)


def test_contrast_makes_a_dim_crop_like_a_bright_one_and_predicts_at_its_own_brightness():
    mae = MaskedAutoencoder(CONTRAST, SMALL_DECODER).eval()
    torch.nn.init.normal_(mae.encoder.patch_embed.weight, std=0.2)
    bright = torch.rand(3, 1, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    dim = 0.3 + 0.2 * bright
    visible, _ = random_mask(3, 64, 0.5, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(mae.encoder(dim), mae.encoder(bright), atol=2e-2, rtol=0)
        assert not torch.allclose(mae.encoder(bright.flip(2)), mae.encoder(bright), atol=2e-2)
        of_bright, of_dim = (mae(crops, visible=visible).patches for crops in (bright, dim))
        torch.testing.assert_close(of_dim, 0.3 + 0.2 * of_bright, atol=2e-2, rtol=0)


def test_an_empty_crop_has_an_embedding_and_faint_noise_stays_small():
    encoder = MaskedAutoencoder(CONTRAST, SMALL_DECODER).eval().encoder
    empty = torch.zeros(1, 1, 8, 16, 16)
    noise = empty + 1e-4 * torch.rand(empty.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert torch.isfinite(encoder(empty)).all()
        torch.testing.assert_close(encoder(noise), encoder(empty), atol=0.1, rtol=0)


@pytest.mark.parametrize("error", ["window", "contrast", "patch"])
def test_loss_equals_a_loop_over_patches_and_voxels(error):
    """In each unit: α 2 and γ 5, σ̄² such that some patches reach the most that a patch may count."""
    generator = torch.Generator().manual_seed(2)
    prediction, voxels = (torch.rand(3, 64, 32, generator=generator) for _ in range(2))
    voxels[:, :32] *= 0.05  # background: hardly varies
    visible = some_visible(3, 0.5, seed=3)
    target = loss_target(voxels, visible, error)
    mean_variance = float(target.variance.mean())
    top = bottom = total = 0.0
    for b in range(3):
        seen = voxels[b, visible[b]].double().numpy()
        for i in range(64):
            patch = voxels[b, i].double().numpy()
            unit = {"window": 1.0, "contrast": np.sqrt(seen.var() + 0.005**2),
                    "patch": np.sqrt(patch.var() + 0.005**2)}[error]  # fmt: skip
            variance = patch.var() / unit**2 if error == "contrast" else patch.var()
            total += variance
            if i not in visible[b]:
                weight = 2 + 5 * min(1.0, variance / mean_variance)
                top += weight * np.mean(((prediction[b, i].double().numpy() - patch) / unit) ** 2)
                bottom += weight
    assert mean_variance == pytest.approx(total / (3 * 64), rel=1e-5)
    found = content_aware_loss(prediction, target, alpha=2.0, gamma=5.0, mean_variance=mean_variance)
    assert [float(each) for each in found] == pytest.approx([top, bottom], rel=1e-5)


def test_weights_run_from_background_to_cell_and_gamma_zero_is_uniform():
    voxels = torch.zeros(1, 4, 8)
    voxels[0, 1:, ::2] = 1.0  # variance .25
    voxels[0, 2, ::2] = 0.5  # variance .0625
    target = loss_target(voxels, torch.tensor([[3]]))
    assert content_weights(target, mean_variance=0.125)[0].tolist() == pytest.approx([1.0, 10.0, 5.5, 0.0])
    assert content_weights(target, gamma=0.0, mean_variance=0.125)[0].tolist() == [1.0, 1.0, 1.0, 0.0]
    flat = loss_target(torch.zeros(1, 3, 8), torch.tensor([[0]]))
    assert content_weights(flat, mean_variance=0.0)[0].tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("error", ["window", "contrast", "patch"])
def test_micro_batches_add_up_to_the_loss_of_the_batch(error):
    generator = torch.Generator().manual_seed(3)
    prediction, voxels = (torch.rand(8, 64, 32, generator=generator) for _ in range(2))
    target = loss_target(voxels, some_visible(8, 0.75, seed=4), error)
    whole = content_aware_loss(prediction, target, mean_variance=0.08)
    parts = [
        content_aware_loss(prediction[i : i + 3], target.rows(slice(i, i + 3)), mean_variance=0.08)
        for i in range(0, 8, 3)
    ]
    assert float(sum(p[0] for p in parts)) == pytest.approx(float(whole[0]), rel=1e-5)
    assert float(sum(p[1] for p in parts)) == pytest.approx(float(whole[1]), rel=1e-5)


def test_it_overfits_one_crop():
    torch.manual_seed(0)
    mae = MaskedAutoencoder(SMALL, SMALL_DECODER)
    z, y, x = torch.meshgrid(
        torch.linspace(0, 3, 8), torch.linspace(0, 6, 16), torch.linspace(0, 6, 16), indexing="ij"
    )
    crop = (0.5 + 0.5 * torch.sin(z + y) * torch.cos(x))[None, None]
    optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-2)
    visible = torch.arange(0, 64, 2)[None]
    target = loss_target(mae.target(crop), visible)
    losses = []
    for _ in range(200):
        made = mae(crop, visible=visible)
        top, bottom = content_aware_loss(made.patches, target, gamma=0.0, mean_variance=1.0)
        optimizer.zero_grad()
        (top / bottom).backward()
        optimizer.step()
        losses.append((top / bottom).item())
    assert sum(losses[-20:]) / 20 < 0.2 * crop.var().item()
