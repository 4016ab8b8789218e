"""A detector of random weights, volumes of blobs, and detection in one piece as the definition."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.detect.maxima.local_maxima import find_maxima
from canvas_fm.inference.detect.tiles.tiled_detection import just_below
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import save_detector

VOXEL_UM = (4.0, 1.8, 1.8)


SHAPE = (22, 61, 70)  # no axis is a whole number of patches or tiles


def make_detector(folder, *, channels=1, smooth_um=2.5, **options):
    """A net of random weights, its statistics those of such volumes, whose heat has many maxima."""
    torch.manual_seed(1)
    net = HeatMapNet(ConvMixerConfig(dim=6, depth=2, kernel_zyx=(3, 3, 5), channels=channels))
    seen = np.stack([blobs((16, 64, 64), seed=channel) for channel in range(channels)])[None]
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = 1.0
        net.train()(torch.from_numpy(seen / np.float32(seen.max())))
        net.head.weight.copy_(torch.randn(1, 6) + 0.3 * torch.randn(16, 6))
        net.head.bias.fill_(-1.0)
    settings = {"voxel_um": VOXEL_UM, "threshold": 0.4, "min_distance_um": 7.0, "smooth_um": smooth_um}
    return save_detector(folder, net.eval(), **settings | options)


def blobs(shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    points = (rng.random((40, 3)) * shape).astype(int)
    voxels = np.zeros(shape)
    voxels[tuple(points.T)] = rng.uniform(2e5, 6e5, 40)
    return (gaussian_filter(voxels, (1, 2, 2)) + rng.uniform(80, 120, shape)).astype(np.uint16)


def write(path, voxels, **options):
    settings = {"voxel_um": VOXEL_UM, "dtype": voxels.dtype, "chunk_zyx": (8, 16, 16), **options}
    with Volume.create(path, voxels.shape, **settings) as writer:
        writer.write((0, 0, 0), voxels)
    return Volume.open(path)


def whole_heat(detector, volume):
    """The definition in one piece: the net over the whole volume, then smoothing."""
    config = detector.config
    voxels = volume.window_by(config.window_rule).apply(volume.read((0, 0, 0), volume.shape_zyx))
    padded = np.pad(voxels, [(0, 0), (0, -voxels.shape[1] % 4), (0, -voxels.shape[2] % 4)], mode="edge")
    with torch.no_grad():
        heat = torch.sigmoid(detector.net(torch.from_numpy(padded)[None, None]))[0].numpy()
    heat = heat[:, : voxels.shape[1], : voxels.shape[2]]
    sigma = [config.smooth_um / um for um in volume.voxel_um]
    return gaussian_filter(heat, sigma, mode="nearest", truncate=3)


def untiled(detector, volume, threshold=None):
    """FindMaxima of the whole volume's heat."""
    config, heat = detector.config, whole_heat(detector, volume)
    radius = [config.min_distance_um / um for um in volume.voxel_um]
    return find_maxima(heat, radius, just_below(threshold or config.threshold))
