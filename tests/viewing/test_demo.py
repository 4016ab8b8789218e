"""What the demo measures: separability on another brain, the map, what untrained means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from canvas_fm.data.phantom.phantom import write_phantom
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.evaluation.metrics.separability import Accuracy, brightness_features, linear_right, raw_pca
from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import Encoder, save_encoder
from canvas_fm.viewing.demo.measure_pretraining import (
    cells_of,
    embedding_map,
    loss_lines,
    untrained_like,
    view_of,
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    torch.manual_seed(7)
    mae = MaskedAutoencoder(EncoderConfig(dim=24, depth=1, heads=2), DecoderConfig(dim=12, depth=1, heads=2))
    return save_encoder(tmp_path_factory.mktemp("m") / "tiny", mae, voxel_um=(4.0, 1.8, 1.8))


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return write_phantom(
        tmp_path_factory.mktemp("ph"), shape_zyx=(32, 96, 96), markers=("NeuN", "cFos"), seed=1
    )


def test_cells_are_crops_around_true_centres(brain, encoder):
    cells = cells_of(brain, encoder)
    count = len(cells.marker) // 2
    assert cells.marker.tolist() == ["NeuN"] * count + ["cFos"] * count
    assert cells.crops.shape == (2 * count, 16, 32, 32)
    volume = Volume.open(brain["cFos"] / "raw.zarr")
    centres = Points.read(brain["cFos"] / "centroids.csv").zyx
    wanted = [np.floor(c + 0.5).astype(int) - (8, 16, 16) for c in centres]
    room = np.array((32, 96, 96)) - (16, 32, 32)
    inside = [start for start in wanted if np.all(start >= 0) and np.all(start <= room)]
    known = {volume.window.apply(volume.read(start, (16, 32, 32))).tobytes() for start in inside}
    assert {crop.tobytes() for crop in cells.crops[count:]} <= known


def test_a_view_shows_the_cells_of_its_plane(brain):
    view = view_of(brain["NeuN"])
    volume = Volume.open(brain["NeuN"] / "raw.zarr")
    centres = Points.read(brain["NeuN"] / "centroids.csv").zyx
    planes = [
        (volume.window.apply(p) * 255).astype(np.uint8) for p in volume.read((0, 0, 0), volume.shape_zyx)
    ]
    (z,) = [z for z, plane in enumerate(planes) if np.array_equal(plane, view.plane)]
    near = centres[np.abs(centres[:, 0] - z) * 4.0 <= 4.0][:, 1:]
    assert np.array_equal(view.cells_yx, near)
    assert (view.cells_in_volume, view.pixel_um) == (len(centres), 1.8)


def test_untrained_is_the_same_net_with_other_weights(encoder):
    state = torch.get_rng_state()
    first, again, other = (untrained_like(encoder, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    sizes = [p.shape for p in encoder.net.parameters()]
    assert [p.shape for p in first.net.parameters()] == sizes
    weight = [net.net.patch_embed.weight for net in (first, again, other, encoder)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])
    assert not torch.equal(weight[0], weight[3])


def test_the_map_keeps_distances_of_a_plane():
    """Vectors that lie in a plane are drawn without loss; groups stay apart from names."""
    random = np.random.default_rng(0)
    flat = random.normal(size=(40, 2)) * (3, 1)
    basis = np.linalg.qr(random.normal(size=(16, 2)))[0]
    names = np.array(["a", "b"] * 20)
    places, share = embedding_map((flat @ basis.T + 5).astype(np.float32), names)
    assert list(places) == ["a", "b"]
    assert sum(share) == pytest.approx(1)
    assert share[0] > share[1]
    drawn = np.linalg.norm(places["a"][:, None] - places["a"][None], axis=-1)
    true = np.linalg.norm(flat[::2][:, None] - flat[::2][None], axis=-1)
    assert np.allclose(drawn, true, atol=1e-4)


def test_loss_lines_average_the_held_out_volumes():
    rows = [{"kind": "train", "step": 1, "loss": 3.0}]
    rows += [
        {"kind": "eval", "step": 1, "crops": kind, "volume": volume, "loss": loss}
        for kind, volume, loss in [("random", "a", 1.0), ("random", "b", 2.0), ("foreground", "a", 4.0)]
    ]
    assert loss_lines(rows) == {
        "training": [(1, 3.0)],
        "held-out brain, random crops": [(1, 1.5)],
        "held-out brain, foreground crops": [(1, 4.0)],
    }


def classes(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    names = np.array(["a", "b"])[np.random.default_rng(1).integers(0, 2, n)]
    return np.random.default_rng(0).normal(size=(n, 4)), names


def test_what_a_plane_can_part_is_parted_and_noise_is_chance():
    features, names = classes()
    shifted = features + 8 * (names == "a")[:, None]
    assert linear_right(shifted[:100], names[:100], shifted[100:], names[100:]).all()
    at_chance = Accuracy.of([linear_right(features[:100], names[:100], features[100:], names[100:])])
    assert at_chance.low < 0.5 < at_chance.high


def test_scaling_comes_from_the_training_rows_alone():
    """A test brain that is brighter as a whole is not put right by its own mean."""
    features, names = classes()
    shifted = features + 8 * (names == "a")[:, None]
    right = linear_right(shifted[:100], names[:100], shifted[100:] + 100, names[100:])
    assert right.mean() < 0.8


def test_the_interval_is_that_of_a_share():
    right = np.arange(400) % 4 > 0
    accuracy = Accuracy.of([right])
    assert accuracy.value == 0.75
    half_width = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert accuracy.low == pytest.approx(0.75 - half_width, abs=0.01)
    assert accuracy.high == pytest.approx(0.75 + half_width, abs=0.01)
    assert Accuracy.of([right, ~right]).value == 0.5


def test_principal_components_come_from_the_training_crops():
    random = np.random.default_rng(0)
    train, test = random.random((30, 4, 4, 4)), random.random((10, 4, 4, 4))
    fitted, applied = raw_pca(train, test, components=5)
    assert (fitted.shape, applied.shape) == ((30, 5), (10, 5))
    mean, flat = train.reshape(30, -1).mean(0), train.reshape(30, -1)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:5]
    assert np.allclose(np.abs((test.reshape(10, -1) - mean) @ axes.T), np.abs(applied), atol=1e-6)
    assert np.allclose(raw_pca(train, test[:1], components=5)[1], applied[:1])


def test_brightness_features():
    crops = np.arange(16.0).reshape(2, 2, 2, 2)
    assert brightness_features(crops)[0].tolist() == pytest.approx([3.5, np.std(np.arange(8)), 3.5, 7])
