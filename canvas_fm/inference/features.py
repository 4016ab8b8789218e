"""What the detector saw around a point: pooled features, for whoever judges its candidates."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32

from canvas_fm.data.crops import crop_starts
from canvas_fm.data.points import as_zyx
from canvas_fm.data.resample import check_voxel_um
from canvas_fm.data.volume import Volume, Zyx
from canvas_fm.inference.detect import TILE_ZYX, channels_of
from canvas_fm.inference.job import read_windowed
from canvas_fm.inference.tiles import Box, Readable, Resampled, cut, pad_to, whole
from canvas_fm.inference.validate import check_points
from canvas_fm.models.checkpoint import Detector
from canvas_fm.models.convmixer import pool_boxes
from canvas_fm.models.device import pick_device, pick_precision
from canvas_fm.progress import bar

_AT_ONCE = 256  # points whose parts of the map are gathered together


def detector_features(
    detector: Detector,
    volume: Volume,
    points_zyx: Float[np.ndarray, "n 3"],
    *,
    crop_zyx: Zyx = (16, 32, 32),
    bins: int = 2,
    background: Volume | None = None,
    tile_zyx: Zyx = TILE_ZYX,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    resample: bool = False,
    any_voxel: bool = False,
    show: bool | None = None,
) -> Float32[np.ndarray, "n d"]:
    """The mean of the feature map in each of `bins`³ parts of the crop around every point, rows as given.

    A crop is the encoder's (`crop_zyx` voxels); with 48 channels and 2 bins an axis 384 numbers. A part
    counts only what lies inside the volume. Tile by tile, in bounded memory, each tile's map made once.
    """
    to_um = check_voxel_um(volume, detector.config.voxel_um, resample=resample, any_voxel=any_voxel)
    points = as_zyx(points_zyx)
    check_points(points, volume.shape_zyx)
    volumes = channels_of(detector, volume, background)
    sources: list[Readable] = [v if to_um is None else Resampled(v, to_um) for v in volumes]
    windows = [v.window_by(detector.config.window_rule) for v in volumes]
    if isinstance(sources[0], Resampled):
        points = points / sources[0].ratio
    architecture = detector.config.architecture
    extent = whole(sources[0].shape_zyx)
    starts = crop_starts(points, crop_zyx)
    place = np.clip(np.floor(points + 0.5).astype(np.int64), 0, np.asarray(extent.stop) - 1)
    detector.to(pick_device(device))
    dtype = pick_precision(precision, detector.device)
    out = np.zeros((len(points), architecture.dim * bins**3), np.float32)
    with bar("features", len(points), unit="points", show=show) as advance:
        for core in cut(extent, tile_zyx):
            rows = np.flatnonzero(core.holds(place))
            if not len(rows):
                continue
            box = core.grown(crop_zyx, extent, architecture.patch_zyx)
            read = box.grown(architecture.halo_zyx, extent, architecture.patch_zyx)
            voxels = read_windowed(sources, volumes, windows, read)
            features = _map(detector, voxels, read, box, dtype)
            for first in range(0, len(rows), _AT_ONCE):
                some = rows[first : first + _AT_ONCE]
                local = torch.from_numpy(starts[some] - np.asarray(box.start)).to(features.device)
                pooled = pool_boxes(
                    features, local, box_zyx=crop_zyx, patch_zyx=architecture.patch_zyx, bins=bins
                )
                out[some] = pooled.cpu().numpy()
                advance(len(some))
    return out


@torch.inference_mode()
def _map(
    detector: Detector, voxels: Float32[np.ndarray, "c z y x"], read: Box, box: Box, dtype: torch.dtype
) -> Float[torch.Tensor, "dim pz py px"]:
    """The feature map of `box`, made from `read`, which holds its halo."""
    patch = detector.config.architecture.patch_zyx
    given = torch.from_numpy(np.ascontiguousarray(pad_to(voxels, patch)))[None].to(detector.device)
    with torch.autocast(detector.device.type, dtype, enabled=dtype != torch.float32):
        features = detector.net.features(given)[0].float()
    z, y, x = (
        slice((a - o) // p, -(-(b - o) // p))
        for a, b, o, p in zip(box.start, box.stop, read.start, patch, strict=True)
    )
    return features[:, z, y, x]
