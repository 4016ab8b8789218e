"""Randomised phantoms on disk, in the layout of the six-marker phantom: volume, mask and centroids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from canvas_fm.data.phantom.randomised.draw_phantom import SHAPE_ZYX, draw_phantom
from canvas_fm.data.phantom.randomised.parameter_ranges import CellKind, Families
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import removed_on_error, write_text_atomic


def write_random_phantom(
    out: str | Path,
    seed: int,
    *,
    shape_zyx: Zyx = SHAPE_ZYX,
    voxel_um: ZyxUm | None = None,
    kind: CellKind | None = None,
    families: Families | None = None,
) -> Path:
    """Write the randomised phantom of a seed to OUT/random-SEED; returns that folder.

    It holds `raw.zarr` (uint16), `mask.zarr` (cell i of the centroids has the number i + 1), `centroids.csv`
    (z, y, x in voxels, diameter_um) and `meta.json` with all that was drawn; with autofluorescence also
    `background.zarr`, the second channel. Raises CanvasError where the folder exists; half a phantom is
    removed.
    """
    folder = Path(out) / f"random-{seed}"
    if folder.exists():
        raise CanvasError(f"{folder} exists already; delete it or choose another folder")
    phantom = draw_phantom(seed, shape_zyx=shape_zyx, voxel_um=voxel_um, kind=kind, families=families)
    look = phantom.look
    with removed_on_error(folder):
        folder.mkdir(parents=True)
        channels = {"raw": phantom.voxels, "mask": phantom.mask.astype(np.uint16)}
        if phantom.background is not None:
            channels["background"] = phantom.background
        for name, voxels in channels.items():
            with Volume.create(
                folder / f"{name}.zarr",
                shape_zyx,
                dtype=voxels.dtype,
                voxel_um=look.voxel_um,
                marker=look.kind,
                source="canvas-fm phantom --randomise",
            ) as volume:
                volume.write((0, 0, 0), voxels)
        Points(phantom.centres_zyx, {"diameter_um": phantom.diameter_um}).write(folder / "centroids.csv")
        meta = {
            "marker": look.kind,
            "shape_zyx": list(shape_zyx),
            "voxel_um": list(look.voxel_um),
            "seed": seed,
            "n_centroids": len(phantom.centres_zyx),
            "source": "canvas-fm phantom --randomise",
            "look": look.as_dict(),
        }
        write_text_atomic(folder / "meta.json", json.dumps(meta, indent=1) + "\n")
    return folder
