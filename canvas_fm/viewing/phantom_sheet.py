"""Contact sheet of randomised phantoms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from canvas_fm.data.phantom.randomised.draw_phantom import draw_phantom
from canvas_fm.data.phantom.randomised.parameter_ranges import CellKind, Families
from canvas_fm.data.volume.volume import Zyx, ZyxUm
from canvas_fm.files.atomic import write_atomic

_SLAB_UM = 15.0


def phantom_sheet(
    seeds: Sequence[int],
    path: str | Path,
    *,
    shape_zyx: Zyx = (40, 160, 160),
    voxel_um: ZyxUm | None = None,
    kind: CellKind | None = None,
    families: Families | None = None,
) -> Path:
    """PNG of a 15 µm slab of each seed's phantom; red dots are its true cells."""
    columns = math.ceil(math.sqrt(len(seeds)))
    rows = math.ceil(len(seeds) / columns)
    figure = Figure(figsize=(2.0 * columns, 2.2 * rows))
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, seed in zip(axes, seeds, strict=False):
        phantom = draw_phantom(seed, shape_zyx=shape_zyx, voxel_um=voxel_um, kind=kind, families=families)
        look, middle = phantom.look, shape_zyx[0] // 2
        half = max(1, round(_SLAB_UM / look.voxel_um[0] / 2))
        slab = phantom.voxels[max(middle - half, 0) : middle + half + 1].max(axis=0)
        low, high = np.percentile(slab, [1, 99.8])
        ax.imshow(slab, cmap="gray", vmin=low, vmax=max(high, low + 1))
        in_slab = phantom.centres_zyx[abs(phantom.centres_zyx[:, 0] - middle) <= half]
        ax.plot(in_slab[:, 2], in_slab[:, 1], ".", color="red", markersize=1.5)
        ax.set_title(f"{seed}: {len(phantom.centres_zyx)} {look.kind}, {look.diameter_um:.0f} µm", fontsize=6)
    figure.tight_layout(pad=0.3)
    FigureCanvasAgg(figure)
    write_atomic(Path(path), lambda file: figure.savefig(file, format="png", dpi=110))
    return Path(path)
