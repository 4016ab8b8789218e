"""Which detector the benchmarks run: one that is named, one that is shipped, else an untrained one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from canvas_fm.data.volume.volume import Volume
from canvas_fm.files.shipped import shipped
from canvas_fm.inference.detect.heatmap import NetHeatMapper, smooth
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import Detector, load, save_detector

NAMED = "CANVAS_FM_BENCH_DETECTOR"  # a folder or a shipped name
_FOREGROUND = 0.005  # of the voxels are above the threshold of an untrained detector, as of a trained one
_LOOKED_AT = (64, 128, 128)


def bench_detector(shipped_name: str, volume: Volume, folder: Path) -> tuple[Detector, bool]:
    """A detector, and whether it was trained.

    An untrained one has the recipes' architecture and a threshold at which FindMaxima has as much to do as
    behind a trained one: its speed counts, its cells do not.
    """
    name = os.environ.get(NAMED) or (shipped_name if shipped_name in shipped("model") else None)
    if name is not None:
        return load(name, kind="detector"), True
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(patch_zyx=(1, 4, 4), dim=48, depth=3, kernel_zyx=(3, 3, 3)))
    net.head.weight.data.normal_(std=1.0)
    settings = {"voxel_um": volume.voxel_um, "min_distance_um": 12.0, "smooth_um": 3.0}
    drawn = save_detector(folder / "drawn", net, threshold=0.5, **settings)
    size = np.minimum(volume.shape_zyx, _LOOKED_AT)
    start = (np.asarray(volume.shape_zyx) - size) // 2
    voxels = volume.window.apply(volume.read(tuple(start.tolist()), tuple(size.tolist())))
    heat = smooth(NetHeatMapper(drawn, "cpu")(voxels[None]), drawn.config.smooth_um, volume.voxel_um)
    threshold = float(np.clip(np.quantile(heat, 1 - _FOREGROUND), 0.001, 0.999))
    return save_detector(folder / "untrained", net, threshold=threshold, **settings), False
