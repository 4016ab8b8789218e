"""Small real volumes with ground truth, shipped with the package: `sample:cfos`, `sample:microglia`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.files.shipped import find

_KEYS = ("marker", "cube", "origin_zyx", "voxel_um", "voxel_size", "source", "licence")


class Sample(NamedTuple):
    """A volume, its true cell centres (n, 3) z, y, x in voxels of level 0, and the source of both."""

    volume: Volume
    cells: Points
    about: dict[str, object]
    folder: Path


def sample(name: str) -> Sample:
    """A shipped light-sheet volume of 64 × 160 × 160 voxels and its true cells: `cfos` or `microglia`.

    `about` names cube, origin (z, y, x), voxel size, source and licence; the licence's text is in `folder`.
    """
    folder = find("sample", name.removeprefix("sample:"))
    about = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return Sample(
        Volume.open(folder / "raw.zarr"),
        Points.read(folder / "centroids.csv"),
        {key: about[key] for key in _KEYS},
        folder,
    )
