"""Cells placed in an atlas, and what makes that doubtful: outside, swapped axes, µm taken for voxels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from jaxtyping import Bool, Float64, Int64

from canvas_fm.analysis.regions.atlas import Atlas
from canvas_fm.analysis.regions.transform import Reorientation, Transform, reorientation
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError, counted

_log = logging.getLogger(__name__)
_JUDGED = 50  # points from which their lie says something
_FEW = 5  # points half of which are not outside by chance
_SAMPLE = 20_000
_CLEARLY = 0.1  # share by which another order of axes has to hold more points in tissue


@dataclass(frozen=True)
class AtlasPositions:
    """Position of each point in µm, its row of the tree (-1: none), its side (1 left, 2 right)."""

    um: Float64[np.ndarray, "n 3"]
    inside: Bool[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    side: Int64[np.ndarray, " n"]

    @property
    def outside(self) -> int:
        """Points outside the grid."""
        return int((~self.inside).sum())

    @property
    def unlabelled(self) -> int:
        """Points on the grid where no region is."""
        return int((self.inside & (self.row < 0)).sum())


def place(
    atlas: Atlas,
    zyx: Float64[np.ndarray, "n 3"],
    voxel_um: ZyxUm,
    *,
    orientation: str | None = None,
    shape_zyx: Sequence[int] | None = None,
    transforms: Sequence[Transform] = (),
    allow_outside: bool = False,
) -> AtlasPositions:
    """Place points (voxels of the volume, an integer is a voxel's centre) in the atlas.

    Raises CanvasError where half of five or more fall outside or half of 50 or more into no region, or where
    another order or direction of the axes holds nearly all of them in tissue and this one does not, unless
    `allow_outside`; warns of fewer outside.
    """
    um = (zyx + 0.5) * np.asarray(voxel_um)
    for transform in _steps(atlas, orientation, voxel_um, shape_zyx, transforms):
        um = transform(um)
    index, inside = _voxels(atlas, um)
    row, side = np.full(len(um), -1, np.int64), np.zeros(len(um), np.int64)
    row[inside] = atlas.tree.rows_of(atlas.labels[tuple(index[inside].T)])
    side[inside] = atlas.side_at(index[inside])
    placed = AtlasPositions(um, inside, row, side)
    lost = len(um) >= _FEW and 2 * placed.outside >= len(um)
    if not allow_outside and (len(um) >= _JUDGED or lost):
        _check(atlas, placed, zyx, voxel_um)
    if placed.outside and not allow_outside:
        _log.warning(
            "%s of %s outside the atlas and counted in no region",
            f"{placed.outside:,}", counted(len(um), "point", "are"),
        )  # fmt: skip
    return placed


def _steps(
    atlas: Atlas,
    orientation: str | None,
    voxel_um: ZyxUm,
    shape_zyx: Sequence[int] | None,
    transforms: Sequence[Transform],
) -> list[Transform]:
    steps: list[Transform] = []
    source = orientation or atlas.sample_orientation
    if source is not None:
        if atlas.orientation is None:
            raise CanvasError(
                f"the points' orientation is {source}; where the atlas' axes begin is not known: "
                "give --atlas-orientation too, for the Allen Institute's annotation asr"
            )
        axes, flips = reorientation(source, atlas.orientation)
        if shape_zyx is not None:
            extent = np.asarray(shape_zyx) * np.asarray(voxel_um)
        else:
            extent = np.empty(3)
            extent[list(axes)] = atlas.turned_extent_um
        z, y, x = (float(size) for size in extent)
        steps.append(Reorientation(axes, flips, (z, y, x)))
    steps += transforms
    if atlas.to_atlas is not None and not atlas.on_sample:
        steps.append(atlas.to_atlas)
    return steps


def _check(atlas: Atlas, placed: AtlasPositions, zyx: np.ndarray, voxel_um: ZyxUm) -> None:
    picked = np.linspace(0, len(zyx) - 1, min(len(zyx), _SAMPLE)).astype(int)
    tissue = float((placed.row[picked] >= 0).mean())
    if tissue >= 0.9:
        return
    hints = []
    as_um = _in_tissue(atlas, placed.um[picked] / np.asarray(voxel_um))
    if as_um > max(0.8, tissue + _CLEARLY) and min(voxel_um) > 1.5:
        hints.append("the positions look like µm where voxels are expected (canvas-fm points convert)")
    other, share = _best_axes(atlas, placed.um[picked])
    if share > max(0.9, tissue + _CLEARLY):
        hints.append(f"the axes look swapped: {other} brings {share:.0%} of the points into tissue")
    as_columns, share = _best_columns(atlas, placed.um[picked], zyx[picked], np.asarray(voxel_um))
    if not hints and share > max(0.9, tissue + _CLEARLY):
        hints.append(f"the columns look swapped: {as_columns} brings {share:.0%} of the points into tissue")
    if not hints and tissue >= 0.5:
        return
    known = placed.um[np.isfinite(placed.um).all(1)]
    if not len(known):
        raise CanvasError(
            f"the transform gives none of the {len(zyx):,} points a position, only NaN; is its field "
            "complete, and that of this volume?"
        )
    least, most = known.min(0) / 1e3, known.max(0) / 1e3
    spans = ", ".join(f"{low:.3g} to {high:.3g}" for low, high in zip(least, most, strict=True))
    size = " × ".join(f"{extent / 1e3:.3g}" for extent in atlas.extent_um)
    hint = (
        f"{'; '.join(hints)}."
        if hints
        else ("are voxel size, orientation (--orientation) and atlas those of this volume?")
    )
    raise CanvasError(
        f"{placed.outside:,} of {counted(len(zyx), 'point')} are outside the atlas and "
        f"{placed.unlabelled:,} where no "
        f"region is; they span {spans} mm in z, y, x, the atlas {size} mm. {hint} "
        "--allow-outside counts those that are inside"
    )


def _voxels(atlas: Atlas, um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxel of each position, and whether it is on the grid; positions that no transform knows are not."""
    known = np.where(np.isfinite(um), um, -1.0)
    index = np.clip(np.floor(known / np.asarray(atlas.voxel_um)), -1, np.iinfo(np.int32).max).astype(np.int64)
    return index, np.all((index >= 0) & (index < np.asarray(atlas.labels.shape)), axis=1)


def _best_axes(atlas: Atlas, um: np.ndarray) -> tuple[str, float]:
    """The other order and direction of axes that brings most points into tissue, and their share."""
    best, reading = 0.0, ""
    for axes, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        if axes == (0, 1, 2) and not any(flips):
            continue
        turned = um[:, list(axes)]
        share = _in_tissue(atlas, np.where(flips, atlas.extent_um - turned, turned))
        if share > best + 0.005:
            names = ("−" * flip + "zyx"[axis] for axis, flip in zip(axes, flips, strict=True))
            best, reading = share, "reading them as " + ", ".join(names)
    return reading, best


def _best_columns(atlas: Atlas, um: np.ndarray, zyx: np.ndarray, voxel_um: np.ndarray) -> tuple[str, float]:
    """The other order of the table's columns that brings most points into tissue, and their share."""
    if not np.allclose(um, (zyx + 0.5) * voxel_um):
        return "", 0.0  # turned or transformed on the way
    orders = [order for order in permutations(range(3)) if order != (0, 1, 2)]
    shares = [_in_tissue(atlas, (zyx[:, list(order)] + 0.5) * voxel_um) for order in orders]
    best = int(np.argmax(shares))
    return "reading them as " + ", ".join("zyx"[axis] for axis in orders[best]), shares[best]


def _in_tissue(atlas: Atlas, um: np.ndarray) -> float:
    index, inside = _voxels(atlas, um)
    return float((atlas.labels[tuple(index[inside].T)] != 0).sum() / max(len(um), 1))
