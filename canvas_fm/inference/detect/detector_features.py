"""Pooled feature maps of a detector around points, as input of refiners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy.ndimage import maximum_filter

from canvas_fm.data.crops.reader import crop_starts
from canvas_fm.data.points.points import as_zyx
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.data.zyx import match_voxel_um
from canvas_fm.errors import BadInput
from canvas_fm.inference.detect.detect import TILE_ZYX, channels_of
from canvas_fm.inference.detect.heatmap import smooth, smooth_reach
from canvas_fm.inference.detect.maxima.blob_amplitude import Amplitude
from canvas_fm.inference.detect.maxima.relative_score import log_of
from canvas_fm.inference.detect.tiles.tiled_detection import read_windowed
from canvas_fm.inference.detect.tiles.tiles import Box, Readable, Resampled, cut, pad_to, whole
from canvas_fm.inference.input_checks import check_points
from canvas_fm.models.detector.convmixer import pool_boxes
from canvas_fm.models.detector.convmixer_planes import features_by_planes
from canvas_fm.models.device import pick_device, pick_precision
from canvas_fm.models.load_model import Detector
from canvas_fm.progress import bar

_PLANES = 8  # patches in z whose logits are computed together
_AT_ONCE = 256  # points whose parts of the map are gathered together
# A candidate of another detector may lie beside the heat's peak: half of the distance that the detector keeps
# between two cells is looked at, on each axis.
NEAR = 0.5
LEAST_HEAT = 1e-4  # of its logit: what is colder than this is as cold


def detector_features(
    detector: Detector,
    volume: Volume,
    points_zyx: Float[np.ndarray, "n 3"],
    *,
    crop_zyx: Zyx = (16, 32, 32),
    bins: int = 2,
    heat: bool = False,
    amplitude: bool = False,
    background: Volume | None = None,
    tile_zyx: Zyx = TILE_ZYX,
    device: str | torch.device = "auto",
    precision: str = "auto",
    resample: bool = False,
    ignore_voxel_size: bool = False,
    show: bool | None = None,
) -> Float32[np.ndarray, "n d"]:
    """Mean feature in each of `bins`³ parts of the crop around every point, rows as given.

    A crop is the encoder's (`crop_zyx` voxels); with 48 channels and 2 bins an axis 384 numbers. A part
    counts only what lies inside the volume. Tile by tile, in bounded memory, each tile's map made once.
    With `heat` one more column comes last: the logit of the detector's own heat, smoothed as when it detects,
    at the hottest voxel within half of its `min_distance_um` along each axis. With `amplitude` another
    behind it: the logarithm of the blob's amplitude that enters the detector's scores.
    """
    to_um = match_voxel_um(
        volume, detector.config.voxel_um, resample=resample, ignore_voxel_size=ignore_voxel_size
    )
    points = as_zyx(points_zyx)
    check_points(points, volume.shape_zyx)
    volumes = channels_of(detector, volume, background)
    sources: list[Readable] = [v if to_um is None else Resampled(v, to_um) for v in volumes]
    windows = [v.window_by(detector.config.window_rule) for v in volumes]
    if isinstance(sources[0], Resampled):
        points = points / sources[0].ratio
    architecture = detector.config.architecture
    extent = whole(sources[0].shape_zyx)
    place = np.clip(np.floor(points + 0.5).astype(np.int64), 0, np.asarray(extent.stop) - 1)
    detector.to(pick_device(device))
    dtype = pick_precision(precision, detector.device)
    pooling = MapPooling(crop_zyx, bins, heat, amplitude)
    out = np.zeros((len(points), pooling.columns(detector)), np.float32)
    margin = pooling.margin_zyx(detector, sources[0].voxel_um)
    with bar("features", len(points), unit="points", show=show) as advance:
        for core in cut(extent, tile_zyx):
            rows = np.flatnonzero(core.holds(place))
            if not len(rows):
                continue
            # The map is needed around the candidates alone, which often fill little of their tile.
            box = _around(place[rows]).grown(margin, extent, architecture.patch_zyx)
            read = box.grown(architecture.halo_zyx, extent, architecture.patch_zyx)
            voxels = read_windowed(sources, volumes, windows, read)
            features = _map(detector, voxels, read, box, dtype)
            out[rows] = pooling.pooled(
                detector, features, box, points[rows], sources[0].voxel_um, voxels[0], read
            )
            advance(len(rows))
    return out


@dataclass(frozen=True)
class MapPooling:
    """Pooling of a detector's map around a point to a vector: crop and parts an axis.

    With `heat` the detector's logit is behind it, with `amplitude` the log amplitude of the blob behind that.
    """

    crop_zyx: Zyx
    bins: int = 2
    heat: bool = False
    amplitude: bool = False

    def columns(self, detector: Detector) -> int:
        return detector.config.architecture.dim * self.bins**3 + self.heat + self.amplitude

    def margin_zyx(self, detector: Detector, voxel_um: ZyxUm) -> list[int]:
        """Margin of the map around a point that its pooling reads, in voxels."""
        margin = np.asarray(self.crop_zyx) // 2 + 1
        if self.heat:
            margin = np.maximum(margin, _heat_reach(detector, voxel_um))
        if self.amplitude:
            margin = np.maximum(margin, _amplitude_of(detector, voxel_um).reach_zyx)
        return margin.tolist()

    def pooled(
        self,
        detector: Detector,
        features: Float[torch.Tensor, "dim pz py px"],
        box: Box,
        points: Float[np.ndarray, "n 3"],
        voxel_um: ZyxUm,
        voxels: Float32[np.ndarray, "z y x"],
        read: Box,
    ) -> Float32[np.ndarray, "n d"]:
        """Vectors of points whose margin lies in `box`, of its feature map; positions in its voxels.

        `voxels` are the windowed ones of `read`, which holds `box`.
        """
        out = np.zeros((len(points), self.columns(detector)), np.float32)
        start = np.asarray(box.start)
        place = np.clip(np.floor(points + 0.5).astype(np.int64), start, np.asarray(box.stop) - 1)
        if self.heat:
            hottest = _max_nearby(detector, features, box, voxel_um)
            out[:, -1 - self.amplitude] = _logit(hottest[tuple((place - start).T)])
        if self.amplitude:
            near = _amplitude_of(detector, voxel_um).near(voxels, place - np.asarray(read.start))
            out[:, -1] = log_of(near)
        starts = crop_starts(points, self.crop_zyx)
        for first in range(0, len(points), _AT_ONCE):
            batch = slice(first, first + _AT_ONCE)
            local = torch.from_numpy(starts[batch] - start).to(features.device)
            pooled = pool_boxes(
                features, local, box_zyx=self.crop_zyx, bins=self.bins,
                patch_zyx=detector.config.architecture.patch_zyx,
            )  # fmt: skip
            out[batch, : pooled.shape[1]] = pooled.cpu().numpy()
        return out


def _around(place_zyx: Int64[np.ndarray, "n 3"]) -> Box:
    """The smallest box that holds these voxels."""
    (z0, y0, x0), (z1, y1, x1) = place_zyx.min(axis=0).tolist(), (place_zyx.max(axis=0) + 1).tolist()
    return Box((z0, y0, x0), (z1, y1, x1))


@torch.inference_mode()
def _map(
    detector: Detector, voxels: Float32[np.ndarray, "c z y x"], read: Box, box: Box, dtype: torch.dtype
) -> Float[torch.Tensor, "dim pz py px"]:
    """Feature map of `box`, computed from `read`, which includes its halo."""
    patch = detector.config.architecture.patch_zyx
    padded = torch.from_numpy(np.ascontiguousarray(pad_to(voxels, patch))).to(detector.device)
    if detector.device.type == "cpu":
        features = features_by_planes(detector.net, padded, dtype)
    else:
        with torch.autocast(detector.device.type, dtype, enabled=dtype != torch.float32):
            features = detector.net.features(padded[None])[0].float()
    return part_of_map(features, read, box, patch)


def part_of_map(
    features: Float[torch.Tensor, "dim pz py px"], read: Box, box: Box, patch_zyx: Zyx
) -> Float[torch.Tensor, "dim qz qy qx"]:
    """The patches of `box` in a map of `read`; both start at whole patches."""
    z, y, x = (
        slice((a - o) // p, -(-(b - o) // p))
        for a, b, o, p in zip(box.start, box.stop, read.start, patch_zyx, strict=True)
    )
    return features[:, z, y, x]


def _amplitude_of(detector: Detector, voxel_um: ZyxUm) -> Amplitude:
    """The amplitude in a detector's scores; BadInput for one whose scores have none."""
    if detector.config.amplitude is None:
        raise BadInput(f"the scores of the detector {detector.name} take in no brightness; leave it out")
    return Amplitude(detector.config.amplitude, voxel_um)


def _near(detector: Detector, voxel_um: ZyxUm) -> Zyx:
    """Half of the least distance between two cells, in whole voxels."""
    z, y, x = (int(NEAR * detector.config.min_distance_um / um + 0.5) for um in voxel_um)
    return z, y, x


def _heat_reach(detector: Detector, voxel_um: ZyxUm) -> Zyx:
    """Receptive field of the detector logit around a point, smoothing included."""
    smoothed = smooth_reach(detector.config.smooth_um, voxel_um)
    z, y, x = (a + b for a, b in zip(_near(detector, voxel_um), smoothed, strict=True))
    return z, y, x


@torch.inference_mode()
def _max_nearby(
    detector: Detector, features: Float[torch.Tensor, "dim pz py px"], box: Box, voxel_um: ZyxUm
) -> Float32[np.ndarray, "z y x"]:
    """Maximum smoothed heat near each voxel of the box; valid where the neighbourhood is inside."""
    _, y, x = box.size
    heat = np.empty(box.size, np.float32)
    depth, start = detector.config.architecture.patch_zyx[0], 0
    for planes in features.split(_PLANES, dim=1):  # all at once would double the map
        probability = torch.sigmoid(detector.net.logits(planes[None])[0]).cpu().numpy()
        part = heat[start : start + _PLANES * depth]
        part[:] = probability[: len(part), :y, :x]
        start += _PLANES * depth
    heat = smooth(heat, detector.config.smooth_um, voxel_um)
    return maximum_filter(heat, [2 * n + 1 for n in _near(detector, voxel_um)], mode="nearest")


def _logit(heat: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """log(p / (1 − p)), p clipped away from 0 and 1."""
    return np.log((heat + LEAST_HEAT) / (1 - heat + LEAST_HEAT)).astype(np.float32)
