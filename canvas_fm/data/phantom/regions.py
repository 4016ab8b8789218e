"""Label volume of synthetic brain regions with its table, as an atlas registered to a phantom."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt16

from canvas_fm.data.phantom.fields import noise
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import removed_on_error, write_text_atomic

_PITCH_UM = (120.0, 90.0, 90.0)  # of the waves in a border
_WAVE = 0.16  # how far a border swings, as a share of the volume
_SLAB = 64  # planes that are drawn at once


class PhantomRegion(NamedTuple):
    """A row of the table of regions."""

    id: int
    name: str
    acronym: str
    parent_structure_id: int | None


REGIONS = (
    PhantomRegion(1, "brain", "BR", None),
    PhantomRegion(2, "cortex", "CTX", 1),
    PhantomRegion(3, "outer layer", "OL", 2),
    PhantomRegion(4, "inner layer", "IL", 2),
    PhantomRegion(5, "deep nuclei", "DN", 1),
    PhantomRegion(6, "first nucleus", "N1", 5),
    PhantomRegion(7, "second nucleus", "N2", 5),
)


def write_phantom_regions(
    out: str | Path, shape_zyx: Zyx, *, voxel_um: ZyxUm = (4.0, 1.8, 1.8), seed: int = 0
) -> tuple[Path, Path]:
    """Write OUT/regions.zarr (uint16 labels, z, y, x) and OUT/regions.csv (id, name, acronym, parent).

    The tree is that of `REGIONS`: two layers along y above two nuclei side by side along x, with wavy borders
    of their own for each seed; every voxel has a region. Memory is some planes. Both are what
    `canvas-fm regions CELLS ATLAS --table TABLE` takes. Raises CanvasError where one is there already.
    """
    out = Path(out)
    labels, table = out / "regions.zarr", out / "regions.csv"
    if existing := [str(path) for path in (labels, table) if path.exists()]:
        raise CanvasError(f"{', '.join(existing)} exists already; delete it or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with removed_on_error(labels, table):
        with Volume.create(
            labels, shape_zyx, dtype="uint16", voxel_um=voxel_um, source="canvas-fm phantom --regions"
        ) as writer:
            for low in range(0, shape_zyx[0], _SLAB):
                high = min(low + _SLAB, shape_zyx[0])
                writer.write((low, 0, 0), _slab(low, high, shape_zyx, np.asarray(voxel_um), seed))
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(PhantomRegion._fields)
        rows.writerows(REGIONS)
        write_text_atomic(table, text.getvalue())
    return labels, table


def _slab(low: int, high: int, shape: Zyx, voxel_um: np.ndarray, seed: int) -> UInt16[np.ndarray, "z y x"]:
    first, last = np.array([low, 0, 0]), np.array([high, shape[1], shape[2]])
    depth, side = (
        np.linspace(0, 1, shape[axis]).reshape([-1 if axis == other else 1 for other in range(3)])
        + _WAVE * (noise(first, last, voxel_um, _PITCH_UM, (seed, 90 + axis)) - 0.5)
        for axis in (1, 2)
    )
    return np.select([depth < 0.25, depth < 0.5, side < 0.5], [3, 4, 6], 7).astype(np.uint16)
