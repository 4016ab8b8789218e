"""Tiles and where the microscope says that they lie."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.volume.tiff.plane_series import usual_step
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError
from canvas_fm.prepare.convert_flags import StitchOptions

_SMARTSPIM = re.compile(r"(-?\d+)_(-?\d+)")
_log = logging.getLogger(__name__)
_PER_UM = 10.0  # SmartSPIM counts stage positions in tenths of a micrometre


@dataclass(frozen=True)
class Tile:
    """A volume and the position of its first voxel, in whole voxels of the stitched volume."""

    name: str
    volume: Volume
    position_zyx: Zyx

    @property
    def stop_zyx(self) -> Zyx:
        """The first voxel beyond it."""
        z, y, x = (p + n for p, n in zip(self.position_zyx, self.volume.shape_zyx, strict=True))
        return z, y, x


def find_tiles(path: Path, options: StitchOptions) -> list[Tile]:
    """Tiles of a SmartSPIM folder `X/X_Y/Z.tiff`, or those that a table names; CanvasError for others.

    The table has the columns tile (a path beside it, or below SRC), z, y and x in voxels.
    """
    places = _of_folder(path) if options.positions is None else _of_table(path, options.positions)
    how: dict[str, Any] = {"on_bad_chunk": options.on_bad_chunk, "missing_chunks": options.missing_chunks}
    how |= {"voxel_um": options.voxel_um, "t": options.t, "c": options.c[0] if options.c else None}
    volumes = {name: Volume.open(place[0], **how) for name, place in places.items()}
    first_name, first = next(iter(volumes.items()))
    for name, volume in volumes.items():
        if volume.dtype != first.dtype or volume.voxel_um != first.voxel_um:
            raise CanvasError(
                f"{path}: tile {name} has {volume.dtype}, {volume.voxel_um} µm; {first_name} has "
                f"{first.dtype}, {first.voxel_um} µm"
            )
    unit = np.array(first.voxel_um) * _PER_UM if options.positions is None else np.ones(3)
    voxels = {name: np.array(place[1]) / unit for name, place in places.items()}
    if options.positions is None:
        for name, planes in _planes_above(path, volumes).items():
            voxels[name][0] = planes
    low = np.min(list(voxels.values()), axis=0)
    tiles = []
    for name, volume in volumes.items():
        z, y, x = (int(n) for n in np.rint(voxels[name] - low))
        tiles.append(Tile(name, volume, (z, y, x)))
    return tiles


def _planes_above(path: Path, volumes: Mapping[str, Volume]) -> dict[str, int]:
    """How many planes of the highest tile lie above each one, by the numbers that name their planes; 0 where
    names are no numbers, or numbers of one series through all tiles."""
    stems = {name: [file.stem for file in volume.files] for name, volume in volumes.items()}
    none = dict.fromkeys(volumes, 0)
    if not all(stem.isdecimal() for names in stems.values() for stem in names):
        return none
    numbers = {name: [int(stem) for stem in names] for name, names in stems.items()}
    low, high = min(min(n) for n in numbers.values()), max(max(n) for n in numbers.values())
    step = usual_step(next(iter(numbers.values())))
    above = {name: round((planes[0] - low) / step) for name, planes in numbers.items()}
    if any(2 * count > len(numbers[name]) for name, count in above.items()):
        return none
    for name, planes in numbers.items():
        if (planes[0], planes[-1]) != (low, high):
            first, last = stems[name][0], stems[name][-1]
            _log.warning(
                "%s: tile %s has planes %s to %s, others from %d to %d; what it lacks is black",
                path, name, first, last, low, high,
            )  # fmt: skip
    return above


def _of_folder(path: Path) -> dict[str, tuple[Path, tuple[float, float, float]]]:
    positions = {}
    for folder in sorted(path.glob("*/*")) if path.is_dir() else []:
        match = _SMARTSPIM.fullmatch(folder.name)
        if match and folder.is_dir() and folder.parent.name == match[1]:
            positions[folder.name] = (folder, (0.0, float(match[2]), float(match[1])))
    if len(positions) < 2:
        raise CanvasError(
            f"{path} holds {len(positions)} tiles; expected folders X/X_Y/Z.tiff as SmartSPIM writes them "
            "(positions in tenths of a micrometre), or --positions TABLE with the columns "
            "tile, z, y, x in voxels"
        )
    return positions


def _of_table(path: Path, table: Path) -> dict[str, tuple[Path, tuple[float, float, float]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise CanvasError(f"{table} cannot be read as a table of positions: {problem}") from problem
    positions: dict[str, tuple[Path, tuple[float, float, float]]] = {}
    for number, row in enumerate(rows, 1):
        try:
            name, at = row["tile"], (float(row["z"]), float(row["y"]), float(row["x"]))
        except (KeyError, TypeError, ValueError) as problem:
            raise CanvasError(
                f"{table}: row {number} is {row}; expected the columns tile, z, y, x with positions in voxels"
            ) from problem
        if name in positions or not np.isfinite(at).all():
            raise CanvasError(f"{table}: row {number}, tile {name}, is there twice or has no finite position")
        place = next((root / name for root in (path, table.parent) if (root / name).exists()), None)
        if place is None:
            raise CanvasError(f"{table}: there is no tile {name} in {path}, nor beside the table")
        positions[name] = (place, at)
    if len(positions) < 2:
        raise CanvasError(f"{table} names {len(positions)} tiles; two or more are stitched")
    return positions
