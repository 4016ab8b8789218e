"""Views keep their place at the centre, and differ in what the recipe lets them differ in."""

from __future__ import annotations

import itertools

import pytest
import torch

from canvas_fm.training.joint.views import Draw, _places, box_zyx, make_views
from canvas_fm.training.recipe.joint_recipe import ViewRecipe

CROP = (8, 16, 16)
STILL = {
    "free": 0.0, "scale": 1.0, "shift_zyx": (0, 0, 0), "gain": 1.0, "offset": 0.0, "gamma": 1.0,
    "blur": 0.0, "noise": 0.0, "stripes": 0.0, "ramp": 0.0,
}  # fmt: skip


def recipe(**changed: object) -> ViewRecipe:
    return ViewRecipe.model_validate(STILL | changed)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_anything_else_a_view_is_one_of_sixteen_mirror_images_and_turns() -> None:
    """About the centre voxel, size // 2: offsets −s // 2 to s // 2 − 1 from it, flipped and turned."""
    box = torch.rand(14, 34, 34, generator=generator(1))
    z, y, x = (torch.arange(s) - s // 2 for s in CROP)
    expected = []
    for fz, fy, fx, turns in itertools.product((1, -1), (1, -1), (1, -1), range(4)):
        gz, gy, gx = torch.meshgrid(fz * z, fy * y, fx * x, indexing="ij")
        for _ in range(turns):
            gy, gx = -gx, gy
        expected.append(box[7 + gz, 17 + gy, 17 + gx])
    views = make_views(box.expand(64, 1, -1, -1, -1), CROP, recipe(), generator())
    seen = set()
    for view in views:
        errors = [float((view[0] - one).abs().max()) for one in expected]
        assert min(errors) < 1e-4
        seen.add(round(float(view.flatten() @ torch.arange(view.numel()).float())))
    assert len(seen) > 8


@pytest.mark.parametrize("free", [0.0, 1.0])
def test_the_place_stays_within_the_shift_of_the_centre_voxel_or_its_mirror_image(free: float) -> None:
    settings = recipe(free=free, scale=1.2, shift_zyx=(1.4, 2.9, 2.9), blur=0.5)
    box = torch.zeros(200, 1, *box_zyx(CROP, settings))
    z, y, x = (n // 2 for n in box.shape[2:])
    box[:, :, z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = 1.0
    views = make_views(box, CROP, settings, generator())[:, 0]
    for axis, (size, shift) in enumerate(zip(CROP, settings.shift_zyx, strict=True), start=1):
        others = [a for a in (1, 2, 3) if a != axis]
        profile = views.sum(dim=others)
        at = (profile * torch.arange(size)).sum(dim=1) / profile.sum(dim=1)
        reach = shift * (2**0.5 if axis > 1 else 1) * 1.2 + 0.3
        assert (at - size // 2).abs().max() <= reach
        # Whole voxels where nothing is turned: one along z, of 1.4 at most.
        assert (at - size // 2).abs().max() > (1.0 if free else 1 - 1e-3)


@pytest.mark.parametrize("crop", [(8, 16, 16), (16, 32, 32), (6, 8, 12)])
@pytest.mark.parametrize("free", [0.0, 1.0])
def test_every_view_lies_inside_its_box(crop: tuple[int, int, int], free: float) -> None:
    settings = recipe(free=free, scale=1.3, shift_zyx=(1.4, 2.9, 2.9))
    shape = torch.Size([100, 1, *box_zyx(crop, settings)])
    for seed in range(20):  # so many at a time stay in the cache
        places = _places(shape, crop, settings, Draw(100, generator(seed)))
        assert places.abs().max() <= 1.0 + 1e-5


@pytest.mark.parametrize(
    "changed",
    [
        {"gain": 1.5},
        {"offset": 0.1},
        {"gamma": 1.5},
        {"blur": 1.0},
        {"noise": 0.5},
        {"stripes": 0.5},
        {"ramp": 0.5},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_each_thing_changes_views_and_stays_in_the_window(changed: dict[str, float]) -> None:
    """The same chance is drawn with and without it, so that nothing else differs."""
    box = 0.2 + 0.5 * torch.rand(40, 1, 14, 34, 34, generator=generator(1))
    plain = make_views(box, CROP, recipe(), generator())
    views = make_views(box, CROP, recipe(**changed), generator())
    assert (views - plain).abs().amax() > 0.02
    assert views.min() >= 0
    assert views.max() <= 1


def test_views_are_those_of_the_generator() -> None:
    box = torch.rand(6, 1, 14, 34, 34, generator=generator(1))
    views = [make_views(box, CROP, ViewRecipe(), generator(seed)) for seed in (0, 0, 1)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
