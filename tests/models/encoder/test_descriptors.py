"""Descriptors behind the tokens: what each number is, how they are fitted, and what goes with them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from canvas_fm.errors import CanvasError
from canvas_fm.inference.embed.embed import embed_crops
from canvas_fm.models.encoder.descriptors import Descriptors, principal_components
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.folder.network_config import DescriptorsConfig, EncoderConfig
from canvas_fm.models.load_model import load, save_encoder

UM = (4.0, 2.0, 2.0)
RADII = (2.0, 5.0, 8.0, 12.0)
# Odd in y and x, so that a quarter turn is about the centre voxel.
CONFIG = EncoderConfig(
    crop_zyx=(6, 15, 15),
    patch_zyx=(2, 5, 5),
    dim=24,
    depth=1,
    heads=2,
    intensity="contrast",
    descriptors=DescriptorsConfig(components=4, radii_um=RADII, voxel_um=UM),
)
BRIGHTNESS, SHAPE = slice(4, 4 + 16 + 3 + 3), slice(26, 34)


def random_crops(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 6, 15, 15, generator=torch.Generator().manual_seed(0))


def blob(sigma_um: tuple[float, float, float], angle: float = 0.0) -> torch.Tensor:
    """One Gaussian of these deviations around the centre voxel, turned in y, x, on a background of .1."""
    axes = ((np.arange(n) - n // 2) * um for n, um in zip((6, 15, 15), UM, strict=True))
    z, y, x = np.meshgrid(*axes, indexing="ij")
    along, across = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
    squares = sum((t / s) ** 2 for t, s in zip((z, along, across), sigma_um, strict=True))
    return torch.from_numpy(0.1 + 0.8 * np.exp(-squares / 2)).float()[None, None]


@pytest.fixture(scope="module")
def descriptors() -> Descriptors:
    torch.manual_seed(0)
    return Descriptors(CONFIG)


@pytest.fixture(scope="module")
def net() -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(CONFIG).eval().requires_grad_(False)


@pytest.mark.parametrize("pool", ["mean", "cls", "centre", "contrast"])
def test_an_embedding_is_pooled_tokens_and_the_descriptors_behind_them(net: ViTEncoder, pool: str) -> None:
    crops = random_crops(3)
    embedding, tokens = net(crops, pool), net.tokens(crops)
    assert embedding.shape[1:] == net.one_shape(pool) == (CONFIG.embedding_dim,) == (24 + 34,)
    assert torch.equal(embedding[:, :24], net.pooled(tokens, pool))
    assert net.descriptors is not None
    assert torch.equal(embedding[:, 24:], net.descriptors(crops))
    assert net(crops, "grid").shape[1:] == net.one_shape("grid") == (24, 3, 3, 3)


def test_brightness_is_logarithms_in_balls_and_shells_of_micrometres(descriptors: Descriptors) -> None:
    """Written down voxel by voxel."""
    crops = random_crops(2)
    found = descriptors.raw(crops)[1, BRIGHTNESS].numpy()
    crop, within = crops[1, 0].numpy(), {r: [] for r in RADII}
    for at in np.ndindex(crop.shape):
        distance = np.sqrt(sum(((i - n // 2) * um) ** 2 for i, n, um in zip(at, crop.shape, UM, strict=True)))
        for radius in RADII:
            if distance <= radius:
                within[radius].append(at)
    values = []
    for places in within.values():
        ball = np.array([crop[at] for at in places])
        values += [ball.mean(), ball.max(), ball.std(), ball.min()]
    for inner, outer in pairwise(RADII):
        values.append(np.mean([crop[at] for at in within[outer] if at not in within[inner]]))
    values += [crop.mean(), crop.max(), crop.std()]
    assert found == pytest.approx(np.log(np.array(values) + 0.005), abs=1e-5)


def test_shape_is_the_same_turned_and_tells_long_from_round(descriptors: Descriptors) -> None:
    crops = torch.cat([blob((4, 4, 2), 0.3), blob((4, 4, 2), 0.3).rot90(1, (3, 4)), blob((4, 2.5, 2.5))])
    long, turned, round_ = descriptors.raw(crops)[:, SHAPE]
    torch.testing.assert_close(long, turned, rtol=1e-4, atol=1e-4)
    length, width, ratio = 4, 5, 6
    assert long[length] > 1.2 * round_[length]
    assert long[width] < round_[width]
    assert round_[ratio].item() == pytest.approx(1, abs=1e-3)
    assert long[ratio] < 0.75


def test_size_counts_the_voxels_that_rise_alike(descriptors: Descriptors) -> None:
    crops = torch.full((1, 1, 6, 15, 15), 0.1)
    crops[0, 0, 3, 6:9, 6:8] = 0.7
    assert descriptors.raw(crops)[0, SHAPE][0].item() == pytest.approx(np.log(6 + 1), abs=1e-3)


@pytest.mark.parametrize("axis", [3, 4])
def test_a_shifted_cell_is_off_the_centre_by_its_shift_and_as_large(
    descriptors: Descriptors, axis: int
) -> None:
    centred, shifted = descriptors.raw(torch.cat([blob((4, 2, 2)), blob((4, 2, 2)).roll(1, axis)]))[:, SHAPE]
    assert centred[1].item() == pytest.approx(0, abs=0.05)
    assert shifted[1].item() == pytest.approx(2.0, abs=0.3)  # a voxel
    torch.testing.assert_close(shifted[3:6], centred[3:6], rtol=0.1, atol=0)


def test_a_gain_moves_logarithms_by_its_own_and_components_hardly(descriptors: Descriptors) -> None:
    crops = 0.2 + 0.3 * random_crops(4)
    dim, bright = descriptors.raw(crops), descriptors.raw(2 * crops)
    torch.testing.assert_close(bright[:, :4], dim[:, :4], rtol=1e-2, atol=1e-2)
    means = [4 + 4 * ball for ball in range(4)]
    torch.testing.assert_close(
        bright[:, means] - dim[:, means], torch.full((4, 4), np.log(2)), rtol=0, atol=0.02
    )


def test_black_crops_have_finite_descriptors(net: ViTEncoder) -> None:
    assert net(torch.zeros(2, 1, 6, 15, 15)).isfinite().all()


def test_fitted_numbers_have_mean_0_and_the_deviation_asked_for(net: ViTEncoder) -> None:
    descriptors = Descriptors(CONFIG)
    crops = random_crops(300)
    descriptors.fit(crops, 0.25)
    found = descriptors(crops)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(34), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.std(dim=0, correction=0), torch.full((34,), 0.25), rtol=1e-3, atol=0)


def test_a_number_that_never_varies_stays_0(descriptors: Descriptors) -> None:
    same = Descriptors(CONFIG)
    same.fit(torch.full((9, 1, 6, 15, 15), 0.5), 0.25)
    assert not same(torch.full((2, 1, 6, 15, 15), 0.5))[:, BRIGHTNESS].any()
    assert same(random_crops(2)).isfinite().all()


@pytest.mark.parametrize("rows", [400, 20])
def test_principal_components_are_the_directions_that_crops_were_made_of(rows: int) -> None:
    random = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(30, 2, generator=random)).Q.T
    strengths = torch.randn(rows, 2, generator=random) * torch.tensor([9.0, 2.0])
    found = principal_components(strengths @ directions + 3.0, 2)
    torch.testing.assert_close((found @ directions.T).abs(), torch.eye(2), rtol=0, atol=0.2)
    torch.testing.assert_close(found @ found.T, torch.eye(2), rtol=0, atol=1e-5)
    assert (found.gather(1, found.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_more_components_than_crops_are_of_nothing() -> None:
    assert not principal_components(torch.eye(3, 30), 5)[3:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radii_um": (2.0, 2.1, 8.0)}, "hold more than the one before"),
        ({"radii_um": (8.0, 2.0)}, "hold more than the one before"),
        ({"components": 6 * 15 * 15 + 1}, "1350 voxels; give fewer"),
    ],
)
def test_descriptors_that_do_not_fit_a_crop_are_refused(change: dict[str, object], message: str) -> None:
    settings = {"components": 4, "radii_um": RADII, "voxel_um": UM} | change
    with pytest.raises(ValueError, match=message):
        EncoderConfig.model_validate({**CONFIG.model_dump(), "descriptors": settings})


def test_a_saved_encoder_has_them_and_says_how_many_numbers_it_gives(net: ViTEncoder, tmp_path) -> None:
    encoder = save_encoder(tmp_path / "encoder", net, voxel_um=UM, pool="centre")
    crops = random_crops(5)
    assert encoder.dim == encoder.num_features == 58
    assert torch.equal(load(tmp_path / "encoder", kind="encoder")(crops), net(crops, "centre"))
    assert embed_crops(encoder, crops[:, 0].numpy(), precision="fp32").shape == (5, 58)
    with pytest.raises(CanvasError, match="24 numbers of its tokens and 34 of the crop"):
        encoder.forward_head(encoder.forward_features(crops))


def test_an_encoder_without_them_is_written_as_before() -> None:
    assert "descriptors" not in CONFIG.model_copy(update={"descriptors": None}).model_dump()
