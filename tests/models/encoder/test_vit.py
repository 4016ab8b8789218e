"""The encoder: parameter counts, patch order, positions, pooling."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange

from canvas_fm.models.encoder.vit import (
    EncoderConfig,
    ViTEncoder,
    init_weights,
    levels_of,
    patchify,
    sincos_positions,
    unpatchify,
)

SMALL = EncoderConfig(crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=48, depth=2, heads=3)
# No two axes alike: 2 × 3 × 4 patches of 1 × 4 × 2 voxels.
UNEVEN = EncoderConfig(crop_zyx=(2, 12, 8), patch_zyx=(1, 4, 2), dim=12, depth=1, heads=2)


def position_coded(batch: int, size_zyx: tuple[int, int, int]) -> torch.Tensor:
    """Crops whose voxel value is their own flat index."""
    z, y, x = size_zyx
    return torch.arange(batch * z * y * x, dtype=torch.float32).reshape(batch, 1, z, y, x)


@pytest.mark.parametrize(
    ("crop", "patch", "parameters"),
    [
        ((16, 32, 32), (4, 8, 8), 10_746_624),
        ((24, 48, 48), (6, 12, 12), 10_980_096),
        ((32, 64, 64), (8, 16, 16), 11_434_752),
    ],
)
def test_parameter_counts_are_the_papers(crop, patch, parameters):
    net = ViTEncoder(EncoderConfig(crop_zyx=crop, patch_zyx=patch))
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.config.tokens == 64


def test_patches_hold_the_voxels_of_their_place_in_zyx_order():
    crops = position_coded(2, (8, 16, 16))
    patches = patchify(crops, (2, 4, 4))
    token = 0
    for z in range(0, 8, 2):
        for y in range(0, 16, 4):
            for x in range(0, 16, 4):
                expected = crops[1, 0, z : z + 2, y : y + 4, x : x + 4].reshape(-1)
                assert torch.equal(patches[1, token], expected)
                token += 1
    assert torch.equal(unpatchify(patches, (4, 4, 4), (2, 4, 4)), crops)


def test_positions_tell_all_places_apart_and_treat_axes_alike():
    positions = sincos_positions((4, 4, 4), 48)
    assert torch.unique(positions, dim=0).shape[0] == 64
    grid = rearrange(positions, "(z y x) (third c) -> z y x third c", z=4, y=4, third=3)
    assert torch.equal(grid[1, 2, 3, 0], grid[0, 1, 2, 1])  # z = 1 is coded as y = 1 is


def test_pooling_reads_the_tokens_that_it_names():
    net = ViTEncoder(SMALL).eval()
    crops = torch.rand(3, 1, 8, 16, 16)
    with torch.no_grad():
        tokens = net.tokens(crops)
        grid = rearrange(tokens[:, 1:], "b (z y x) d -> b z y x d", z=4, y=4)
        torch.testing.assert_close(net(crops, "cls"), tokens[:, 0])
        torch.testing.assert_close(net(crops, "mean"), tokens[:, 1:].mean(1))
        centre = grid[:, 1:3, 1:3, 1:3].mean((1, 2, 3))
        torch.testing.assert_close(net(crops, "centre"), centre)
        torch.testing.assert_close(
            net(crops, "contrast"), centre - grid.mean((1, 2, 3)), atol=1e-6, rtol=1e-5
        )
    with pytest.raises(ValueError, match="one of mean, cls, centre"):
        net(crops, "max")


@pytest.mark.parametrize("pool", ["mean", "cls", "centre", "contrast"])
@pytest.mark.parametrize("layer", [1, 2, None])
def test_the_last_blocks_go_on_from_what_entered_them(pool, layer):
    net = ViTEncoder(SMALL.model_copy(update={"depth": 3})).eval()
    crops = torch.rand(3, 1, 8, 16, 16)
    last = 3 if layer is None else layer
    with torch.no_grad():
        for block in range(last + 1):
            found = net.onward(net.before(crops, block), block, pool, layer)
            torch.testing.assert_close(found, net(crops, pool, layer), rtol=1e-5, atol=1e-5)


def test_only_with_levels_does_a_net_that_sees_contrast_know_what_it_is_relative_to_brightness():
    """Light added to a crop changes the embedding, a gain does not."""
    crops = 0.2 + 0.3 * torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    for levels in (False, True):
        torch.manual_seed(0)
        net = ViTEncoder(SMALL.model_copy(update={"intensity": "contrast", "levels": levels})).eval()
        plain, lighter, gained = net(crops), net(crops + 0.3), net(1.5 * crops)
        assert ((plain - lighter).abs().max().item() > 0.1) == levels
        assert (plain - gained).abs().max().item() < 0.01
        torch.testing.assert_close(net(crops[1:]), plain[1:])


def test_levels_are_logarithms_of_what_a_patch_has_over_the_crops_mean():
    patches = torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(0))
    for crop, given in zip(patches.numpy(), levels_of(patches).numpy(), strict=True):
        for patch, levels in zip(crop, given, strict=True):
            values = np.array([patch.mean(), patch.max(), patch.std(), crop.std()])
            expected = np.log((values + 0.005) / (crop.mean() + 0.005))
            np.testing.assert_allclose(levels, expected, rtol=1e-4, atol=1e-5)
    assert (levels_of(torch.zeros(1, 2, 8)) == 0).all()


def test_visible_tokens_are_those_of_an_encoder_that_sees_only_them():
    """Hiding happens before the first block: a hidden patch cannot reach a visible token."""
    net = ViTEncoder(SMALL).eval()
    crops = torch.rand(1, 1, 8, 16, 16)
    visible = torch.tensor([[5, 0, 63]])
    changed = patchify(crops, SMALL.patch_zyx).clone()
    changed[:, 1:5] = 0.5
    changed = unpatchify(changed, (4, 4, 4), SMALL.patch_zyx)
    with torch.no_grad():
        torch.testing.assert_close(net.tokens(crops, visible), net.tokens(changed, visible), rtol=0, atol=0)
        assert not torch.equal(net.tokens(crops, visible), net.tokens(crops, torch.tensor([[5, 1, 63]])))


def test_each_visible_patch_keeps_its_own_place_whatever_the_order():
    """All patches visible in any order are the plain encoder's tokens in that order; so are some in two."""
    net = ViTEncoder(SMALL).eval()
    crops = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    order = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    rows = torch.arange(2)[:, None]
    with torch.no_grad():
        plain, turned = net.tokens(crops), net.tokens(crops, order)
        torch.testing.assert_close(turned[:, 0], plain[:, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(turned[:, 1:], plain[:, 1:][rows, order], rtol=1e-5, atol=1e-5)
        some, back = net.tokens(crops, order[:, :9]), net.tokens(crops, order[:, :9].flip(1))
        torch.testing.assert_close(back[:, 1:].flip(1), some[:, 1:], rtol=1e-5, atol=1e-5)


def test_a_crop_alone_and_in_a_batch_give_the_same_embedding():
    net = ViTEncoder(SMALL).eval()
    crops = torch.rand(9, 1, 8, 16, 16)
    with torch.no_grad():
        together, alone = net(crops), torch.cat([net(crop[None]) for crop in crops])
    assert ((together - alone).norm(dim=1) / alone.norm(dim=1)).max() < 1e-5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crop_zyx": (16, 32, 30)}, "whole number of patches"),
        ({"dim": 100}, "divisible by 6"),
        ({"depth": 0}, "positive"),
        ({"hedas": 6}, "hedas"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**given)


def test_a_patch_weighs_as_much_as_its_place_from_the_start():
    """Windowed voxels (mean .2, deviation .1) reach the blocks as large as the positions, not drowned."""
    torch.manual_seed(0)
    net = ViTEncoder()
    crops = (0.2 + 0.1 * torch.randn(8, 1, 16, 32, 32)).clamp(0, 1)
    seen = []
    net.patch_embed.register_forward_hook(lambda module, given, made: seen.append(made))
    net.tokens(crops)
    assert 0.5 < (seen[0].std() / net.positions.std()).item() < 3
    assert seen[0].mean().abs().item() < 0.2


def test_axes_of_unlike_length_are_not_mixed_up():
    """Patches, dense poolings and their shapes on a grid of 2 × 3 × 4, by the place of every token."""
    assert (UNEVEN.grid_zyx, UNEVEN.tokens, UNEVEN.patch_voxels) == ((2, 3, 4), 24, 8)
    crops = position_coded(2, UNEVEN.crop_zyx)
    patches = patchify(crops, UNEVEN.patch_zyx)
    net = ViTEncoder(UNEVEN).eval()
    with torch.no_grad():
        tokens, grid = net(crops / 400, "tokens"), net(crops / 400, "grid")
        torch.testing.assert_close(tokens, net.tokens(crops / 400)[:, 1:])
    for token, (z, y, x) in enumerate(np.ndindex(UNEVEN.grid_zyx)):
        expected = crops[:, 0, z, 4 * y : 4 * y + 4, 2 * x : 2 * x + 2].reshape(2, -1)
        assert torch.equal(patches[:, token], expected)
        assert torch.equal(grid[:, :, z, y, x], tokens[:, token])
    assert torch.equal(unpatchify(patches, UNEVEN.grid_zyx, UNEVEN.patch_zyx), crops)
    for pool in ("mean", "tokens", "grid"):
        assert net(crops / 400, pool).shape[1:] == net.one_shape(pool)


def test_positions_are_sines_and_cosines_of_periods_up_to_ten():
    """Written down as a loop: a third of the channels an axis, half sine, half cosine."""
    positions = sincos_positions((2, 3, 4), 24).numpy()
    for token, place in enumerate(np.ndindex(2, 3, 4)):
        expected = [
            function(step * 10 ** (-channel / 4))
            for step in place for function in (math.sin, math.cos) for channel in range(4)
        ]  # fmt: skip
        assert positions[token] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("grid", "centre"),
    [((1, 3, 4), [(0, 1, 1), (0, 1, 2)]), ((4, 1, 2), [(1, 0, 0), (1, 0, 1), (2, 0, 0), (2, 0, 1)])],
)
def test_the_centre_is_the_middle_token_of_an_odd_axis_and_the_middle_two_of_an_even_one(grid, centre):
    config = EncoderConfig(crop_zyx=grid, patch_zyx=(1, 1, 1), dim=12, depth=1, heads=2)
    assert ViTEncoder(config).centre_tokens.tolist() == [np.ravel_multi_index(at, grid) for at in centre]


@pytest.mark.parametrize("intensity", ["window", "contrast"])
def test_what_enters_the_first_block_is_a_linear_layer_of_scaled_patches_and_their_places(intensity):
    net = ViTEncoder(UNEVEN.model_copy(update={"intensity": intensity})).eval()
    crops = torch.rand(3, 1, *UNEVEN.crop_zyx, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        entered = net.before(crops, 0)
        for crop, tokens in zip(crops, entered, strict=True):
            mean, deviation = 0.2, 0.1
            if intensity == "contrast":
                mean, deviation = crop.mean(), (crop.var(correction=0) + 0.005**2).sqrt()
            scaled = (patchify(crop[None], UNEVEN.patch_zyx)[0] - mean) / deviation
            expected = torch.cat([net.cls_token[0], net.patch_embed(scaled) + net.positions])
            torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


def test_weights_begin_xavier_uniform_and_biases_at_zero():
    torch.manual_seed(0)
    net = ViTEncoder(SMALL)
    for module in net.modules():
        if isinstance(module, torch.nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.95 * bound < module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
            assert not module.bias.any()
    assert 0.01 < net.cls_token.std() < 0.04
    without_bias = torch.nn.Linear(3, 4, bias=False)
    init_weights(without_bias)


def test_no_size_may_be_zero_and_heads_divide_the_width():
    for change in ({"mlp_ratio": 0.0}, {"patch_zyx": (0, 8, 8)}, {"heads": 0}, {"dim": 390, "heads": 4}):
        with pytest.raises(ValueError, match=r"positive|divisible"):
            EncoderConfig(**change)
