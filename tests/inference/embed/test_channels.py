"""Embeddings of signal and background: the same places, each channel through its own window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from canvas_fm.errors import CanvasError
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.inference.embed.embed import embed, embed_crops, embed_to_store
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.encoder.vit import EncoderConfig, ViTEncoder
from canvas_fm.models.load_model import save_detector, save_encoder

from ..conftest import CROP, VOXEL_UM, assert_same, noise, random_points, write_volume


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """An encoder of two channels, a volume, its background of another range, and points."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("two")
    config = EncoderConfig(crop_zyx=CROP, patch_zyx=(2, 4, 4), dim=24, depth=1, heads=2, channels=2)
    encoder = save_encoder(folder / "encoder", ViTEncoder(config), voxel_um=VOXEL_UM)
    signal, behind = noise((20, 30, 40)), noise((20, 30, 40), seed=1) // 7 + 300
    volumes = [write_volume(folder / f"{name}.zarr", v) for name, v in (("s", signal), ("b", behind))]
    return encoder, *volumes, random_points((20, 30, 40), 40)


def by_hand(encoder, volumes, zyx):
    rows = []
    for point in zyx:
        start = [int(np.floor(p + 0.5)) - s // 2 for p, s in zip(point, CROP, strict=True)]
        crop = np.stack([volume.window.apply(volume.read(start, CROP)) for volume in volumes])
        rows.append(encoder(torch.from_numpy(crop)[None])[0].numpy())
    return np.stack(rows)


def test_each_row_is_of_both_channels_at_its_point(two):
    encoder, signal, background, points = two
    vectors = embed(encoder, signal, points.zyx, background=background, batch=16, show=False)
    assert_same(vectors, by_hand(encoder, (signal, background), points.zyx), 1e-5)
    turned = embed(encoder, background, points.zyx, background=signal, batch=16, show=False)
    assert np.abs(turned - vectors).max() > 0.01


def test_a_store_belongs_to_its_background_and_workers_give_the_same(two, tmp_path):
    encoder, signal, background, points = two
    out = tmp_path / "x.emb.zarr"
    store = embed_to_store(encoder, signal, points, out, background=background, show=False)
    assert_same(store.vectors, by_hand(encoder, (signal, background), points.zyx), 1e-5)
    # The same intensities elsewhere, so that its window is the same too.
    other = write_volume(tmp_path / "other.zarr", np.asarray(background)[:, ::-1].copy())
    assert other.window == background.window
    with pytest.raises(CanvasError, match="background"):
        embed_to_store(encoder, signal, points, out, background=other, show=False)


def test_it_says_which_channels_are_expected(two, encoder, volume):
    two_channels, signal, background, points = two
    with pytest.raises(CanvasError, match="with a background channel: give --background VOLUME"):
        embed(two_channels, signal, points.zyx)
    with pytest.raises(CanvasError, match="without a background channel: leave --background out"):
        embed(encoder, signal, points.zyx, background=background)
    with pytest.raises(CanvasError, match=r"shape \(20, 30, 40\), the volume"):
        embed(two_channels, volume, points.zyx, background=background)
    crops = np.zeros((3, 1, *CROP), np.float32)
    message = r"takes \(n, 2, 8, 16, 16\), the channels being signal and background"
    for wrong in (crops, crops[:, 0], np.zeros((3, 3, *CROP), np.float32)):
        with pytest.raises(CanvasError, match=message):
            embed_crops(two_channels, wrong)
    with pytest.raises(CanvasError, match="each of the 2 channels of this encoder has a window of its own"):
        embed_crops(two_channels, np.zeros((3, 2, *CROP), np.uint16), window=(0, 100))
    assert embed_crops(two_channels, np.zeros((3, 2, *CROP), np.float32)).shape == (3, 24)


def test_a_refiners_models_take_the_background_where_they_were_trained_with_it(two, tmp_path):
    """Detector of one channel, encoder of two, and the other way round."""
    encoder, signal, background, points = two
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, patch_zyx=(1, 2, 2), kernel_zyx=(3, 3, 3)))
    detector = save_detector(tmp_path / "d", net, voxel_um=VOXEL_UM, threshold=0.4, min_distance_um=8.0)
    extractor = Extractor(encoder=encoder, detector=detector, device="cpu")
    extractor.check(signal, background)
    features = extractor.features(signal, points.zyx, background=background, show=False)
    assert_same(features.block("mae"), by_hand(encoder, (signal, background), points.zyx), 1e-5)
    alone = Extractor(detector=detector, crop_zyx=CROP, device="cpu")
    np.testing.assert_array_equal(
        features.block("detector"), alone.features(signal, points.zyx, show=False).block("detector")
    )
    with pytest.raises(CanvasError, match="give --background VOLUME"):
        extractor.check(signal)
    with pytest.raises(CanvasError, match="leave --background out"):
        alone.check(signal, background)
