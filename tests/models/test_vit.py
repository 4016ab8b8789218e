"""The encoder: parameter counts, patch order, positions, pooling."""

import pytest
import torch
from einops import rearrange

from canvas_fm.models.vit import EncoderConfig, ViTEncoder, patchify, sincos_positions, unpatchify

SMALL = EncoderConfig(crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=48, depth=2, heads=3)


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
            torch.testing.assert_close(found, net(crops, pool, layer), rtol=1e-5, atol=1e-6)


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
