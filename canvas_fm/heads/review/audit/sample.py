"""The sample of an audit: detections by score, and boxes in which missed cells are looked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.ndimage import maximum_filter

from canvas_fm.data.points.boxes import inside_boxes, whole
from canvas_fm.data.points.points import P_CELL, Points, score_column
from canvas_fm.data.zyx import Zyx, ZyxUm
from canvas_fm.errors import BadInput
from canvas_fm.evaluation.detection.plausibility_checks import scores_of
from canvas_fm.heads.review.audit.audit_flags import AuditOptions
from canvas_fm.heads.review.audit.strata import allocate, doubt, draw_stratified, quantile_strata

KIND, ANSWER, STRATUM, SIZE, DRAWN = "kind", "answer", "stratum", "stratum_size", "rows_drawn"
DETECTION, BOX = "detection", "box"
CORNERS = ("z0", "y0", "x0", "z1", "y1", "x1")
_DENSITIES = 3  # strata of boxes that hold detections


class BoxGrid(NamedTuple):
    """Boxes that tile a region: corners (k, 6), detections in each, whether one is in it or next to it."""

    corners: Int64[np.ndarray, "k 6"]
    detections: Int64[np.ndarray, " k"]
    near: np.ndarray


def detections_of(cells: Points, options: AuditOptions) -> Points:
    """The rows that count as detections: all, or those at or above the threshold."""
    if options.threshold is None:
        return cells
    scores = scores_of(cells, score_name(cells, options), needed=True)
    assert scores is not None
    keep = scores >= options.threshold
    return cells[keep]


def score_name(cells: Points, options: AuditOptions) -> str | None:
    """Column of the score: the one that was chosen, else P(cell), else the usual names."""
    return options.score_column or (P_CELL if P_CELL in cells.columns else score_column(cells))


def draw_audit(
    cells: Points,
    shape_zyx: Zyx,
    voxel_um: ZyxUm,
    options: AuditOptions | None = None,
    *,
    within: Int64[np.ndarray, "k 6"] | None = None,
) -> Points:
    """Rows to answer: detections (1 a cell, 0 none, -1 unsure), and boxes (how many cells were missed in it).

    Rows are in random order, so that the first ones that are answered are a sample too. Each row carries its
    stratum and how many detections or boxes that has, and how many rows there are, so that a table that was
    cut is known; boxes have their corners, ends excluded. The column `answer` is blank. Without replacement,
    the same for a seed. Raises BadInput where nothing was detected.
    """
    options = options or AuditOptions.of()
    detections = detections_of(cells, options)
    regions = whole(shape_zyx) if within is None else within
    inside = inside_boxes(detections.zyx, regions)
    if not inside.any():
        raise BadInput(
            f"none of the {len(cells)} cells is a detection in the volume or its boxes; there is nothing "
            "to audit"
        )
    zyx = detections.zyx[inside]
    scores = scores_of(detections, score_name(detections, options), needed=False)
    random = np.random.default_rng((options.seed, 0xA0D17))
    parts = [_detections(zyx, None if scores is None else scores[inside], detections, options, random)]
    if options.boxes:
        parts.append(_boxes(zyx, regions, voxel_um, options, random))
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    rows = sum(map(len, parts))
    return Points(np.concatenate([part.zyx for part in parts]), columns | {DRAWN: np.full(rows, rows)})


def box_grid(
    zyx: Float64[np.ndarray, "n 3"],
    regions: Int64[np.ndarray, "k 6"],
    voxel_um: ZyxUm,
    box_um: Sequence[float],
) -> BoxGrid:
    """Boxes of about `box_um` that tile each region, with their detections."""
    grids = []
    for region in regions:
        edges = []
        for axis in range(3):
            low, high = int(region[axis]), int(region[axis + 3])
            parts = max(1, round((high - low) * voxel_um[axis] / box_um[axis]))
            edges.append(np.round(np.linspace(low, high, min(parts, high - low) + 1)).astype(np.int64))
        own = inside_boxes(zyx, region[None])
        at = [
            np.searchsorted(edge, zyx[own, axis] + 0.5, side="right") - 1 for axis, edge in enumerate(edges)
        ]
        shape = [len(edge) - 1 for edge in edges]
        count = np.bincount(np.ravel_multi_index(at, shape), minlength=int(np.prod(shape))).reshape(shape)
        corners = np.stack(np.meshgrid(*(edge[:-1] for edge in edges), indexing="ij"), -1).reshape(-1, 3)
        ends = np.stack(np.meshgrid(*(edge[1:] for edge in edges), indexing="ij"), -1).reshape(-1, 3)
        near = maximum_filter(count, size=3, mode="constant") > 0
        grids.append(BoxGrid(np.concatenate([corners, ends], axis=1), count.ravel(), near.ravel()))
    return BoxGrid(*(np.concatenate(values) for values in zip(*grids, strict=True)))


def _detections(
    zyx: np.ndarray,
    scores: np.ndarray | None,
    detections: Points,
    options: AuditOptions,
    random: np.random.Generator,
) -> Points:
    stratum = np.zeros(len(zyx), np.int64) if scores is None else quantile_strata(scores, options.strata)
    sizes = np.bincount(stratum)
    weights = sizes.astype(np.float64)
    if (
        scores is not None and score_name(detections, options) == P_CELL
    ):  # a probability says where answers will differ
        weights = np.array([n * doubt(scores[stratum == k]) for k, n in enumerate(sizes)])
    rows = draw_stratified(stratum, allocate(sizes.tolist(), weights.tolist(), options.sample), random)
    blank = np.full((len(rows), 6), "")
    return _rows(zyx[rows], DETECTION, stratum[rows], sizes, blank)


def _boxes(
    zyx: np.ndarray,
    regions: np.ndarray,
    voxel_um: ZyxUm,
    options: AuditOptions,
    random: np.random.Generator,
) -> Points:
    grid = box_grid(zyx, regions, voxel_um, options.box_um)
    if not options.everywhere:
        grid = BoxGrid(*(values[grid.near] for values in grid))
    # Far from everything, next to something, then by the number of detections.
    group = np.where(grid.near, 1, 0)
    filled = grid.detections > 0
    group[filled] = 2 + quantile_strata(grid.detections[filled], _DENSITIES)
    _, stratum = np.unique(group, return_inverse=True)
    sizes = np.bincount(stratum)
    # The number missed varies about as a Poisson number does that goes with what was found.
    mean = np.bincount(stratum, grid.detections) / sizes
    drawn = allocate(sizes.tolist(), (sizes * np.sqrt(mean + 0.25)).tolist(), options.boxes)
    rows = draw_stratified(stratum, drawn, random)
    corners = grid.corners[rows]
    centre = (corners[:, :3] + corners[:, 3:] - 1) / 2
    return _rows(centre, BOX, stratum[rows], sizes, corners.astype(str))


def _rows(zyx: np.ndarray, kind: str, stratum: np.ndarray, sizes: np.ndarray, corners: np.ndarray) -> Points:
    columns = {
        KIND: np.full(len(zyx), kind),
        ANSWER: np.full(len(zyx), ""),
        STRATUM: stratum + 1,
        SIZE: sizes[stratum],
        **{name: corners[:, axis] for axis, name in enumerate(CORNERS)},
    }
    return Points(zyx, columns)
