"""Cells, volume and density of every region and side, own and with children, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Integer, Real

from canvas_fm.analysis.regions.atlas import LEFT, RIGHT, Atlas
from canvas_fm.analysis.regions.atlas_positions import AtlasPositions, place
from canvas_fm.analysis.regions.transform import Transform
from canvas_fm.data.points.formats.read_write import voxel_um_of
from canvas_fm.data.points.points import P_CELL, Points, warn_of_repeated
from canvas_fm.data.points.tables import joined, write_table
from canvas_fm.data.zyx import ZyxUm, ZyxUmLike, check_voxel_um
from canvas_fm.errors import CanvasError
from canvas_fm.heads.refine.counts.candidate_recall import (
    DETECTIONS_PER_CELL,
    recall_of_refined,
    stated_count,
)
from canvas_fm.heads.refine.counts.count_interval import (
    ALL_CELLS,
    ALL_CELLS_IF_RECALL_HOLDS,
    AMONG_CANDIDATES,
    CountSpread,
    MeasuredCount,
    Recall,
    count_interval,
    log_odds_shift,
)
from canvas_fm.heads.refine.head.calibration import sigmoid

SIDES = {"both": 0, "left": LEFT, "right": RIGHT}
ROWS = "rows"


@dataclass(frozen=True)
class RegionCounts:
    """Counts of one channel by region (rows of the tree) and side (columns: unknown, left, right).

    `sums` are Σ p, Σ p(1 − p), and Σ p with all log-odds shifted down and up; `volume_mm3` likewise.
    """

    channel: str
    atlas: Atlas
    placed: AtlasPositions
    sums: Float64[np.ndarray, "4 r 3"]
    volume_mm3: Float64[np.ndarray, "r 3"]
    by_p_cell: bool
    spread: CountSpread
    recall: Recall | MeasuredCount | None
    recall_holds: bool = True

    @property
    def count_of(self) -> str:
        """Of what the counts are, in the words of `refine apply`."""
        if self.recall is None:
            return AMONG_CANDIDATES if self.by_p_cell else ROWS
        return ALL_CELLS if self.recall_holds else ALL_CELLS_IF_RECALL_HOLDS

    def table(self) -> dict[str, np.ndarray]:
        """Columns of one row a region and side, of regions that have a volume or cells."""
        tree, sides = self.atlas.tree, self._sides()
        rolled_volume = tree.with_children(self.volume_mm3)
        rolled = np.stack([tree.with_children(counts) for counts in self.sums])
        parts = []
        for name in sides:
            pick = slice(None) if name == "both" else slice(SIDES[name], SIDES[name] + 1)
            own, own_volume = self.sums[0][:, pick].sum(1), self.volume_mm3[:, pick].sum(1)
            sums, volume = rolled[:, :, pick].sum(2), rolled_volume[:, pick].sum(1)
            rows = np.flatnonzero((volume > 0) | (sums[0] > 0))
            parts.append(self._rows(name, rows, own[rows], own_volume[rows], sums[:, rows], volume[rows]))
        return joined(parts)

    def _sides(self) -> Sequence[str]:
        known = self.volume_mm3[:, 1:].any() or self.sums[0][:, 1:].any()
        return tuple(SIDES) if known else ("both",)

    def _rows(
        self,
        side: str,
        rows: np.ndarray,
        own: np.ndarray,
        own_volume: np.ndarray,
        sums: np.ndarray,
        volume: np.ndarray,
    ) -> dict[str, np.ndarray]:
        regions = [self.atlas.tree.regions[row] for row in rows]
        scale = 1.0 if self.recall is None else 1 / self.recall.value
        count = sums[0] * scale
        with np.errstate(divide="ignore", invalid="ignore"):
            density = np.where(volume > 0, count / volume, np.nan)
        interval: dict[str, np.ndarray] = {}
        if self.by_p_cell or self.recall is not None:
            total, variance, below, above = sums
            low, high = count_interval(total, variance, below, above, self.spread, self.recall)
            interval = {"count_low": low, "count_high": high}
        return {
            "id": np.array([region.id for region in regions], np.int64),
            "name": np.array([region.name for region in regions], np.str_),
            "acronym": np.array([region.acronym for region in regions], np.str_),
            "parent_id": np.array(
                [0 if region.parent is None else region.parent for region in regions], np.int64
            ),
            "depth": self.atlas.tree.depth[rows],
            "channel": np.full(len(rows), self.channel),
            "hemisphere": np.full(len(rows), side),
            "own_count": self._number(own * scale),
            "own_volume_mm3": _significant(own_volume),
            "count": self._number(count),
            **interval,
            "volume_mm3": _significant(volume),
            "density": _significant(density),
            "count_of": np.full(len(rows), self.count_of),
        }

    def _number(self, values: np.ndarray) -> np.ndarray:
        whole = not self.by_p_cell and self.recall is None
        return np.rint(values).astype(np.int64) if whole else np.round(values, 4)


def count_regions(
    points: Points,
    atlas: Atlas,
    *,
    voxel_um: ZyxUmLike | None = None,
    channel: str = "cells",
    volume_mm3: Float64[np.ndarray, "r 3"] | None = None,
    probabilities: bool | None = None,
    spread: CountSpread | None = None,
    recall: Recall | MeasuredCount | None = None,
    orientation: str | None = None,
    shape_zyx: Sequence[int] | None = None,
    transforms: Sequence[Transform] = (),
    allow_outside: bool = False,
) -> RegionCounts:
    """Count points per region; with a column p_cell (or `probabilities`) the sum of P(cell).

    Sums are of all cells where the recall of the candidates is known: `recall`, else what the points state;
    so are detections whose header states how many there are per cell.
    `voxel_um` is the volume's, else what the points' file or the registration states. `volume_mm3` of
    `region_volumes` may be given so that several channels share it.
    """
    size = _size(points, atlas, voxel_um)
    warn_of_repeated(points.zyx, channel)
    if probabilities and P_CELL not in points.columns:
        raise CanvasError(f"the points have no column {P_CELL}; refine them first (canvas-fm refine apply)")
    by_p = P_CELL in points.columns if probabilities is None else probabilities
    p = probabilities_of(points) if by_p else np.ones(len(points))
    placed = place(
        atlas, points.zyx, size, orientation=orientation, shape_zyx=shape_zyx, transforms=transforms,
        allow_outside=allow_outside,
    )  # fmt: skip
    spread = spread or CountSpread()
    measured: Recall | MeasuredCount | None = None
    if not by_p and P_CELL not in points.columns:  # rows go by detections per cell
        measured = stated_count(points, DETECTIONS_PER_CELL)
    elif by_p:
        measured = recall_of_refined(points) if recall is None else recall
    volumes = region_volumes(atlas) if volume_mm3 is None else volume_mm3
    sums = _sums(p, placed, len(atlas.tree), spread)
    holds = points.meta.get("count_of") != ALL_CELLS_IF_RECALL_HOLDS
    return RegionCounts(channel, atlas, placed, sums, volumes, by_p, spread, measured, holds)


def _size(points: Points, atlas: Atlas, voxel_um: ZyxUmLike | None) -> ZyxUm:
    stated = voxel_um_of(points.meta) or atlas.sample_voxel_um
    if voxel_um is None and stated is None:
        raise CanvasError(
            "the points' file does not state the volume's voxel size; give it: --voxel-um Z Y X"
        )
    return check_voxel_um(voxel_um if voxel_um is not None else stated)  # type: ignore[arg-type]


def probabilities_of(points: Points) -> Float64[np.ndarray, " n"]:
    """P(cell) of each row; CanvasError for a column that holds anything else than numbers from 0 to 1."""
    p = np.asarray(points.columns[P_CELL])
    if p.dtype.kind not in "fiu" or not ((p >= 0) & (p <= 1)).all():
        raise CanvasError(f"the column {P_CELL} holds more than numbers from 0 to 1; expected P(cell) a row")
    return p.astype(np.float64)


def _sums(
    p: Float64[np.ndarray, " n"], placed: AtlasPositions, regions: int, spread: CountSpread
) -> Float64[np.ndarray, "4 r 3"]:
    at = placed.row >= 0
    cell, inside = placed.row[at] * 3 + placed.side[at], p[at]
    logit, shift = log_odds_shift(inside, spread)
    below, above = (sigmoid(logit - shift), sigmoid(logit + shift)) if shift else (inside, inside)
    weights: tuple[Real[np.ndarray, " k"], ...] = (inside, inside * (1 - inside), below, above)
    return np.stack([np.bincount(cell, weight, regions * 3).reshape(regions, 3) for weight in weights])


def _significant(values: np.ndarray, digits: int = 7) -> np.ndarray:
    """Values to so many significant digits, far more than a registration knows a volume by."""
    return np.array([float(f"{value:.{digits}g}") for value in values.tolist()], np.float64)


def region_volumes(atlas: Atlas) -> Float64[np.ndarray, "r 3"]:
    """Own volume in mm³ of each region by side (unknown, left, right), plane by plane."""
    regions = len(atlas.tree)
    total = np.zeros(regions * 3)
    for z in range(len(atlas.labels)):
        label, side = atlas.labels[z].ravel(), _sides_of_plane(atlas, z).ravel()
        # Neighbours mostly share their region: runs of equal voxels are looked up once.
        changes = (label[1:] != label[:-1]) | (side[1:] != side[:-1])
        first = np.flatnonzero(np.concatenate([[True], changes]))
        length = np.diff(np.append(first, len(label)))
        row, of = atlas.tree.rows_of(label[first]), side[first].astype(np.int64)
        if ((of < 0) | (of > 2)).any():
            raise CanvasError("the volume of hemispheres holds more than 0, 1 (left) and 2 (right)")
        named = row >= 0
        total += np.bincount(row[named] * 3 + of[named], length[named], regions * 3)
    return total.reshape(regions, 3) * float(np.prod(np.asarray(atlas.voxel_um) / 1e3))


def _sides_of_plane(atlas: Atlas, z: int) -> Integer[np.ndarray, "y x"]:
    """Hemisphere of each voxel of a plane; 0 where it is not known."""
    if atlas.hemispheres is not None:
        return atlas.hemispheres[z]
    shape, planes = atlas.labels.shape[1:], atlas.side_of_planes()
    if planes is None:
        return np.zeros(shape, np.int64)
    axis, of = planes
    return np.broadcast_to(of[z] if axis == 0 else np.expand_dims(of, 2 - axis), shape)


def write_counts(counts: Sequence[RegionCounts], path: str | Path) -> dict[str, np.ndarray]:
    """Write the channels' rows as one CSV; returns its columns."""
    tables = [channel.table() for channel in counts]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    filled = [_filled(table, keys) for table in tables]
    table = {key: np.concatenate([part[key] for part in filled]) for key in keys}
    write_table(Path(path), table, {})
    return table


def _filled(table: Mapping[str, np.ndarray], keys: Sequence[str]) -> dict[str, Any]:
    rows = len(table["id"])
    return {key: table[key] if key in table else np.full(rows, np.nan) for key in keys}
