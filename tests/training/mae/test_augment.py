"""Augmentation against numpy, one crop at a time."""

from __future__ import annotations

import numpy as np
import torch

from canvas_fm.data.volume.window import Window
from canvas_fm.training.mae.augment import Draw, augment, draw, to_unit, turn
from canvas_fm.training.recipe.recipe import AugmentRecipe

CROP = (4, 6, 6)


def numbered(batch: int, crop: tuple[int, int, int] = CROP) -> torch.Tensor:
    """Every voxel of a batch holds its own running index."""
    return torch.arange(batch * int(np.prod(crop)), dtype=torch.int16).reshape(batch, *crop)


def plain(recipe: AugmentRecipe, batch: int, seed: int = 0, crop: tuple[int, int, int] = CROP) -> Draw:
    return draw(recipe, batch, crop, torch.Generator().manual_seed(seed))


def test_every_crop_is_turned_and_flipped_as_numpy_would() -> None:
    crops, drawn = numbered(64), plain(AugmentRecipe(noise=0), 64)
    turned = turn(crops, drawn)
    for crop, result, flips, turns in zip(crops, turned, drawn.flips_zyx, drawn.quarter_turns, strict=True):
        expected = np.rot90(crop.numpy(), int(turns), axes=(1, 2))
        expected = np.flip(expected, [axis for axis in range(3) if flips[axis]])
        np.testing.assert_array_equal(result.numpy(), expected)
    assert set(drawn.quarter_turns.tolist()) == {0, 1, 2, 3}
    assert 0.3 < drawn.flips_zyx.float().mean() < 0.7


def test_probabilities_are_those_of_the_recipe() -> None:
    never = plain(AugmentRecipe(flip=0, rotate=False, noise=0), 50)
    assert not never.flips_zyx.any()
    assert not never.quarter_turns.any()
    assert never.noise is None
    always = plain(AugmentRecipe(flip=1), 50)
    assert always.flips_zyx.all()


def test_crops_that_are_not_square_are_flipped_but_never_turned() -> None:
    crop = (4, 6, 8)
    drawn = plain(AugmentRecipe(noise=0), 50, crop=crop)
    assert not drawn.quarter_turns.any()
    assert turn(numbered(50, crop), drawn).shape == (50, *crop)


def test_the_window_is_that_of_inference() -> None:
    """uint16 above 32,767 too, which the stored int16 shows as negative."""
    voxels = np.random.default_rng(0).integers(0, 65_536, (5, *CROP)).astype(np.uint16)
    windows = [Window(100.0 * i, 30_000.0 + 9_000 * i) for i in range(5)]
    scales = torch.tensor([[w.low, 1 / (w.high - w.low)] for w in windows])
    unit = to_unit(torch.from_numpy(voxels.view(np.int16)), scales)
    for result, crop, window in zip(unit, voxels, windows, strict=True):
        np.testing.assert_array_equal(result[0].numpy(), window.apply(crop))
    assert 0 == unit.min() < unit.max() == 1


def test_noise_has_its_sigma_and_stays_in_the_unit_range() -> None:
    raw = torch.full((200, *CROP), 500, dtype=torch.int16)
    windows = torch.tensor([[0.0, 1 / 1000]]).repeat(200, 1)
    noisy = augment(raw, windows, plain(AugmentRecipe(noise=0.01), 200))
    assert abs(noisy.mean() - 0.5) < 1e-3
    assert abs(noisy.std() - 0.01) < 5e-4
    black = augment(torch.zeros_like(raw), windows, plain(AugmentRecipe(noise=0.5), 200))
    assert black.min() == 0
    assert black.max() <= 1


def test_parts_of_a_batch_get_what_the_whole_would() -> None:
    raw, windows = numbered(12), torch.tensor([[0.0, 1 / 1700]]).repeat(12, 1)
    drawn = plain(AugmentRecipe(), 12)
    whole = augment(raw, windows, drawn)
    parts = [augment(raw[p], windows[p], drawn.rows(p)) for p in (slice(0, 5), slice(5, 12))]
    assert torch.equal(whole, torch.cat(parts))
