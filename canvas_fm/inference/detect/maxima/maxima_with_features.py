"""Cells of a tile together with the detector's features around them, of one pass through the net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32

from canvas_fm.inference.detect.detector_features import MapPooling, part_of_map
from canvas_fm.inference.detect.heatmap import NetHeatMapper
from canvas_fm.inference.detect.tiles.merge_tiles import TileMaxima
from canvas_fm.inference.detect.tiles.tiled_detection import TiledDetection, read_windowed
from canvas_fm.inference.detect.tiles.tiles import Box, Resampled, pad_to
from canvas_fm.models.detector.convmixer_planes import features_and_heat_by_planes
from canvas_fm.models.device import pick_device, pick_precision


class FeaturedMaxima(NamedTuple):
    """Maxima of one tile, and a vector of each."""

    maxima: TileMaxima
    features: Float32[np.ndarray, "n d"]


@dataclass
class FeaturedJob:
    """A detection job by a net whose tiles also give the pooled features of their maxima; picklable.

    A tile reads as far as the crops around its maxima reach. Scores are those of the job alone to the last
    bits of float32, features those of `detector_features`.
    """

    job: TiledDetection
    pooling: MapPooling

    def tile(self, number: int) -> FeaturedMaxima:
        """Maxima of one tile with their features."""
        job, core = self.job, self.job.tiles[number]
        assert isinstance(job.heat, NetHeatMapper)
        detector = job.heat.detector
        box = core.grown(self.pooling.margin_zyx(detector, job.voxel_um), job.extent, job.heat.align_zyx)
        read = _both(job.boxes(core)[0], box.grown(job.heat.halo_zyx, job.extent, job.heat.align_zyx))
        voxels = read_windowed(job.sources, job.volumes, job.windows, read)
        if not voxels.any() and job.zeros_give_no_detection():
            return FeaturedMaxima(job.nothing(core), self._features(0))
        features, heat = _features_and_heat(job.heat, voxels)
        maxima = job.maxima(core, read, voxels, heat)
        signal = voxels[0] if self.pooling.amplitude else np.empty((0, 0, 0), np.float32)
        del voxels, heat  # as large as the map of the features together with what pooling takes
        if not len(maxima.score):
            return FeaturedMaxima(maxima, self._features(0))
        near = part_of_map(features, read, box, job.heat.align_zyx)
        # As the features of written points are made: through the volume's voxels and back.
        source, position = job.sources[0], maxima.position
        if isinstance(source, Resampled):
            position = source.to_volume(position) / source.ratio
        with torch.inference_mode():
            pooled = self.pooling.pooled(detector, near, box, position, job.voxel_um, signal, read)
        return FeaturedMaxima(maxima, pooled)

    def _features(self, rows: int) -> Float32[np.ndarray, "n d"]:
        assert isinstance(self.job.heat, NetHeatMapper)
        return np.empty((rows, self.pooling.columns(self.job.heat.detector)), np.float32)


@torch.inference_mode()
def _features_and_heat(
    net: NetHeatMapper, voxels: Float32[np.ndarray, "c z y x"]
) -> tuple[torch.Tensor, Float32[np.ndarray, "z y x"]]:
    detector, device = net.detector, pick_device(net.device)
    detector.to(device)
    dtype = pick_precision(net.precision, device)
    box = torch.from_numpy(np.ascontiguousarray(pad_to(voxels, net.align_zyx))).to(device)
    if device.type == "cpu":
        features, heat = features_and_heat_by_planes(detector.net, box, dtype)
    else:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features = detector.net.features(box[None])
            heat = torch.sigmoid(detector.net.logits(features)[0].float()).cpu()
        features = features[0].float()
    z, y, x = voxels.shape[1:]
    return features, heat.numpy()[:z, :y, :x]


def _both(a: Box, b: Box) -> Box:
    """The smallest box that holds two."""
    low = [min(pair) for pair in zip(a.start, b.start, strict=True)]
    high = [max(pair) for pair in zip(a.stop, b.stop, strict=True)]
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
