"""Reconstruction of one masked crop as the paper's four-row figure, with scores of trivial predictors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from canvas_fm.data.crops.crop_positions import check_crop_fits, draw_starts
from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import match_voxel_um
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.metrics.reconstruction import Batch
from canvas_fm.evaluation.page.figures import reconstruction_figure
from canvas_fm.inference.embed.grid_points import box_centres
from canvas_fm.inference.embed.reconstruct import reconstruct_crops, trained_mask_ratio
from canvas_fm.inference.input_checks import check_points
from canvas_fm.models.load_model import Encoder


def reconstruct(
    encoder: Encoder,
    volume: Volume,
    out: str | Path,
    *,
    at_zyx: Sequence[float] | None = None,
    mask_ratio: float | None = None,
    seed: int = 0,
    device: str = "auto",
    resample: bool = False,
    ignore_voxel_size: bool = False,
) -> dict[str, Any]:
    """Write the figure to `out` (PNG); returns PSNR in dB and SSIM of this crop.

    `at_zyx` is the crop's centre in voxels of level 0; without it a crop with signal is drawn by `seed`,
    which also draws the mask. Without `mask_ratio` the model's own is used. Where the model was given
    something of what it predicts (a decoder of patch targets), `given` says what. Raises as `embed` does, and
    for another suffix than .png.
    """
    out = Path(out)
    if out.suffix.lower() != ".png" or not out.resolve().parent.is_dir():
        raise CanvasError(f"{out} cannot be written: give a .png in a folder that is there")
    config = encoder.config
    to_um = match_voxel_um(volume, config.voxel_um, resample=resample, ignore_voxel_size=ignore_voxel_size)
    reader = CropReader(volume, config.architecture.crop_zyx, resample_to_um=to_um)
    if at_zyx is None:
        centre = box_centres(draw_starts(volume, reader.box_zyx, 1, foreground=1.0, seed=seed), reader)
    else:
        check_crop_fits(volume.shape_zyx, reader.box_zyx, volume.name)
        centre = check_points([at_zyx], volume.shape_zyx)
    crops = volume.window_by(config.window_rule).apply(reader.read_points(centre))
    ratio = mask_ratio if mask_ratio is not None else trained_mask_ratio(encoder)
    result = reconstruct_crops(encoder.to(device), crops, mask_ratio=ratio, seed=seed)
    patch = config.architecture.patch_zyx
    place = [round(float(p), 2) for p in centre[0]]
    title = f"{volume.name}, crop at z, y, x = {', '.join(f'{p:g}' for p in place)}; {ratio:.0%} masked"
    statistics = encoder.mae.decoder_config.masked_statistics
    reconstruction_figure(
        result.crops[0],
        result.masked[0],
        result.prediction[0],
        out,
        patch_zyx=patch,
        title=title if statistics is None else f"{title}; given: {statistics}",
    )
    batch = Batch(result.crops, result.masked, patch)
    about = {
        "figure": str(out),
        "at_zyx": place,
        "masked_patches": int(result.masked.sum()),
        "mask_ratio": ratio,
        **({} if statistics is None else {"given": statistics}),
    }
    trivial = {name: tally.scores() for name, tally in batch.trivial_tallies().items()}
    return about | batch.tally(result.prediction).scores() | trivial
