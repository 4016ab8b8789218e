"""Detect the cells of a volume: heat map tile by tile, local maxima, one point a cell; resumable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.data.zyx import match_voxel_um
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import takes
from canvas_fm.inference.detect.detect_flags import DetectOptions, LogOptions, TileOptions
from canvas_fm.inference.detect.heatmap import HeatMapper, LaplacianHeatMapper, NetHeatMapper
from canvas_fm.inference.detect.maxima.local_maxima import Shape
from canvas_fm.inference.detect.out_of_distribution import mark_unlike, unfamiliar_volume_warnings
from canvas_fm.inference.detect.tiles.tiled_detection import TiledDetection, run
from canvas_fm.inference.detect.tiles.tiles import Readable, Resampled, as_region
from canvas_fm.inference.embed.point_crops import volume_identity
from canvas_fm.inference.input_checks import input_channels
from canvas_fm.models.folder.network_config import AmplitudeConfig, RelativeConfig
from canvas_fm.models.folder.training_volumes import volume_in_training

if TYPE_CHECKING:
    from canvas_fm.models.load_model import Detector

_log = logging.getLogger(__name__)

TILE_ZYX: Zyx = (64, 384, 384)  # of a feature map around candidates


@takes(DetectOptions)
def detect(
    detector: Detector,
    volume: Volume,
    *,
    out: str | Path | None = None,
    background: Volume | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    show: bool | None = None,
    mark: Callable[[TiledDetection, Points], Points] = mark_unlike,
    **options: Any,
) -> Points:
    """Cells found by a trained detector: points z, y, x in voxels with `score`, sorted by position.

    Without `threshold` exactly the rows at or above the operating threshold that the model holds; a low one
    gives candidates to refine. `box` is Z0 Y0 X0 Z1 Y1 X1 in voxels of level 0. Memory goes by `tile_zyx`,
    not by the volume; tiles give what one pass over the whole would. With `out` (.csv, .parquet) the points
    are written, and interrupted work goes on if its inputs are the same. `workers` processes, or a Dask
    `scheduler` such as tcp://host:8786, give the same rows. Raises ModelMismatch for another voxel size,
    CanvasError for what does not fit. Warns (logging) where the volume looks unlike what the threshold was
    chosen on, where the detector was trained on it, and where a small box leaves relative scores nothing to
    be relative to. `mark` adds to the metadata.
    """
    job = detector_job(detector, volume, background=background, **options)
    points = run(job, out, workers=workers, scheduler=scheduler, show=show, mark=mark)
    for sentence in unfamiliar_volume_warnings(job, points):
        _log.warning("%s", sentence)
    return points


@takes(DetectOptions)
def detector_job(
    detector: Detector, volume: Volume, *, background: Volume | None = None, **options: Any
) -> TiledDetection:
    """The job of `detect` without running it; for `plan`."""
    opts = DetectOptions.of(**options)
    config = detector.config
    threshold = config.threshold if opts.threshold is None else opts.threshold
    min_distance_um = config.min_distance_um if opts.min_distance_um is None else opts.min_distance_um
    if not 0 < threshold < 1:
        raise CanvasError(f"threshold is {threshold}; the heat is a probability, give one between 0 and 1")
    to_um = match_voxel_um(
        volume, config.voxel_um, resample=opts.resample, ignore_voxel_size=opts.ignore_voxel_size
    )
    heat = NetHeatMapper(detector, opts.device, opts.precision)
    volumes = channels_of(detector, volume, background)
    settings = {
        "method": "net",
        "detector": detector.sha256,
        "precision": heat.precision,
        "threshold": threshold,
        "min_distance_um": min_distance_um,
    }
    meta = {"detector": detector.name, "detector_sha256": detector.sha256}
    meta["operating_threshold"] = f"{config.threshold:.9g}"
    if volume_in_training(config.provenance, volume.name, volume.crop_of):
        meta["detector_trained_on_volume"] = "yes"
    return _job(
        volumes, config.window_rule, to_um, heat, config.smooth_um, min_distance_um, None, threshold,
        opts, settings, meta, config.amplitude, config.relative,
    )  # fmt: skip


def detect_log(
    volume: Volume,
    *,
    out: str | Path | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    show: bool | None = None,
    **settings: Any,
) -> Points:
    """Cells by a Laplacian of a Gaussian; `settings` are those of `log_job`, the rest as in `detect`."""
    return run(log_job(volume, **settings), out, workers=workers, scheduler=scheduler, show=show)


@takes(LogOptions)
def log_job(volume: Volume, *, window_rule: WindowRule | None = None, **options: Any) -> TiledDetection:
    """The baseline job: local maxima of the Laplacian of a Gaussian, with non-maximum suppression.

    The response is that of windowed voxels, so a threshold hardly carries from one volume to the next.
    """
    opts = LogOptions.of(**options)
    _check_sigma(opts.sigma_um, volume)
    heat = LaplacianHeatMapper(opts.sigma_um, volume.voxel_um)
    rule = window_rule or WindowRule()
    settings = {
        "method": "log",
        "sigma_um": opts.sigma_um,
        "threshold": opts.threshold,
        "min_distance_um": opts.min_distance_um,
    }
    meta = {"detector": f"log, sigma {opts.sigma_um:g} um, window {rule}"}
    return _job(
        [volume], rule, None, heat, 0.0, None, opts.min_distance_um, opts.threshold, opts, settings, meta
    )


def _check_sigma(sigma_um: float, volume: Volume) -> None:
    """Raise CanvasError for a Gaussian that is no blob of this volume: nothing is smoothed, or all is."""
    sizes = " × ".join(f"{um:g}" for um in volume.voxel_um)
    if sigma_um < 0.5 * min(volume.voxel_um):
        raise CanvasError(
            f"sigma is {sigma_um:g} µm, less than half a voxel of {volume.name} ({sizes} µm), so noise is "
            "detected; give a larger --sigma-um, or check the voxel size"
        )
    if sigma_um > max(n * um for n, um in zip(volume.shape_zyx, volume.voxel_um, strict=True)):
        raise CanvasError(
            f"sigma is {sigma_um:g} µm, and {volume.name} is smaller (voxels of {sizes} µm); give a smaller "
            "--sigma-um, or check the voxel size"
        )


def _job(
    volumes: list[Volume],
    rule: WindowRule,
    to_um: ZyxUm | None,
    heat: HeatMapper,
    smooth_um: float,
    min_distance_um: float | None,
    suppress_um: float | None,
    threshold: float,
    where: TileOptions,
    settings: dict[str, Any],
    meta: dict[str, str],
    amplitude: AmplitudeConfig | None = None,
    relative: RelativeConfig | None = None,
) -> TiledDetection:
    first = volumes[0]
    source: Readable = first
    box = as_region(where.box, first.shape_zyx)
    if to_um is not None:
        source = resampled = Resampled(first, to_um)
        box = resampled.box(box)
    windows = [volume.window_by(rule) for volume in volumes]
    radius: tuple[float, float, float] = (1.0, 1.0, 1.0)
    if min_distance_um is not None:
        um_z, um_y, um_x = source.voxel_um
        radius = (min_distance_um / um_z, min_distance_um / um_y, min_distance_um / um_x)
    tile = None
    if where.tile_zyx is not None:
        z, y, x = (max(a, n // a * a) for n, a in zip(where.tile_zyx, heat.align_zyx, strict=True))
        tile = (z, y, x)
    inputs = settings | {
        "volumes": [volume_identity(volume) for volume in volumes],
        "windows": [list(window) for window in windows],
        "voxel_um": list(source.voxel_um),
        "resample_to_um": None if to_um is None else list(to_um),
        "region": [*box.start, *box.stop],
        "subvoxel": where.subvoxel,
    }
    about = {"volume": first.name, "voxel_um": " ".join(f"{um:g}" for um in first.voxel_um)}
    about |= {} if first.plane_0 is None else {"plane_0": first.plane_0}
    about |= {"marker": first.marker} if first.marker else {}
    about |= {"threshold": f"{threshold:.9g}", "min_distance_um": f"{settings['min_distance_um']:g}"}
    shape: Shape = "ball" if suppress_um is None else "box"
    job = TiledDetection(
        volumes, windows, to_um, heat, smooth_um, radius, shape, suppress_um, threshold, where.subvoxel, box,
        tile, inputs, about | meta, amplitude, relative,
    )  # fmt: skip
    job.inputs["tile_zyx"] = list(job.tile_zyx or ())
    job.meta["inputs_sha256"] = job.digest()
    return job


def channels_of(detector: Detector, volume: Volume, background: Volume | None) -> list[Volume]:
    """The volumes of a detector's input channels, checked against its training."""
    return input_channels(detector.name, detector.config.architecture.channels, volume, background)
