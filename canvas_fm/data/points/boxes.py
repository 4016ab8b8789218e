"""Boxes of voxels: regions of interest in which all cells are labelled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Real

from canvas_fm.data.points.formats.json_file import unique_keys
from canvas_fm.errors import CanvasError

_EXPECTED = "a list of boxes [z0, y0, x0, z1, y1, x1] in whole voxels, or a meta.json with 'octants'"


def read_boxes(path: str | Path) -> Int64[np.ndarray, "k 6"]:
    """Boxes of a JSON file, int64 (k, 6) [z0, y0, x0, z1, y1, x1] in voxels of level 0, ends excluded.

    The file is a list of such boxes, or a `meta.json` whose `octants` (z, y, x, size, labelled) say which
    parts carry labels; only those are returned. Raises CanvasError for anything else and where nothing is
    left.
    """
    path = Path(path)
    if not path.is_file():
        raise CanvasError(f"no boxes at {path}; give {_EXPECTED}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as problem:
        raise CanvasError(f"{path} is not readable as JSON: {problem}") from problem
    if isinstance(content, Mapping):
        if "octants" not in content:
            raise CanvasError(f"{path} has no 'octants'; expected {_EXPECTED}")
        content = _labelled(str(path), content["octants"])
    return as_boxes(content, source=str(path))


def as_boxes(boxes: Any, *, source: str = "boxes") -> Int64[np.ndarray, "k 6"]:
    """Validate boxes as int64 (k, 6): at least one, whole numbers, every end beyond its start."""
    try:
        if isinstance(boxes, list):
            ends = (end for box in boxes for end in (box if isinstance(box, list) else [box]))
            if any(isinstance(end, bool) for end in ends):
                raise TypeError("true and false are no voxels")
        values = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise CanvasError(f"{source}: expected {_EXPECTED}") from problem
    if values.ndim == 1 and values.shape == (6,):
        values = values[None]
    if values.ndim != 2 or values.shape[1] != 6 or not len(values):
        raise CanvasError(f"{source}: boxes have shape {values.shape}; expected {_EXPECTED}")
    for row, box in enumerate(values):
        numbers = [f"{value:g}" for value in box]
        if not np.isfinite(box).all() or (box != np.floor(box)).any():
            raise CanvasError(f"{source}: box {row + 1} is [{', '.join(numbers)}]; expected whole voxels")
        if (box[3:] <= box[:3]).any():
            raise CanvasError(
                f"{source}: box {row + 1} is [{', '.join(numbers)}]; each end has to lie beyond its start: "
                "[z0, y0, x0, z1, y1, x1]"
            )
    return values.astype(np.int64)


def check_boxes_inside(boxes: Int64[np.ndarray, "k 6"], shape_zyx: Sequence[int], path: Path) -> None:
    """Raise CanvasError if labelled boxes leave the volume at `path`."""
    if (boxes[:, :3] < 0).any() or (boxes[:, 3:] > np.asarray(shape_zyx)).any():
        raise CanvasError(
            f"{path}: its labelled boxes reach to {boxes.max(axis=0)[3:].tolist()}, beyond the volume, which "
            f"is {tuple(shape_zyx)} (z, y, x)"
        )


def inside_boxes(
    points_zyx: Real[np.ndarray, "n 3"], boxes: Int64[np.ndarray, "k 6"]
) -> Bool[np.ndarray, " n"]:
    """Mask of points inside any box: z0 − ½ ≤ z < z1 − ½, and so on each axis."""
    return box_of(points_zyx, boxes) >= 0


def box_of(points_zyx: Real[np.ndarray, "n 3"], boxes: Int64[np.ndarray, "k 6"]) -> Int64[np.ndarray, " n"]:
    """Index of the first box that contains each point, −1 if none does."""
    zyx = np.asarray(points_zyx, dtype=np.float64).reshape(-1, 3)
    box_index = np.full(len(zyx), -1, dtype=np.int64)
    for row in range(len(boxes) - 1, -1, -1):
        box_index[((zyx >= boxes[row, :3] - 0.5) & (zyx < boxes[row, 3:] - 0.5)).all(axis=1)] = row
    return box_index


def draw_inside(
    boxes: Int64[np.ndarray, "k 6"], n: int, random: np.random.Generator
) -> Float64[np.ndarray, "n 3"]:
    """n uniform random positions in the union of the boxes; overlaps count once."""
    size = (boxes[:, 3:] - boxes[:, :3]).astype(np.float64)
    share = size.prod(axis=1) / size.prod(axis=1).sum()
    positions = np.empty((0, 3))
    while len(positions) < n:
        row = random.choice(len(boxes), size=n - len(positions), p=share)
        drawn = boxes[row, :3] - 0.5 + random.random((len(row), 3)) * size[row]
        # A place in two boxes is drawn twice as often: keep it only when its first box has drawn it.
        positions = np.concatenate([positions, drawn[box_of(drawn, boxes) == row]])
    return positions


def whole(shape_zyx: Sequence[int]) -> Int64[np.ndarray, "1 6"]:
    """The box of a whole volume of the given shape, int64 (1, 6)."""
    return np.array([[0, 0, 0, *shape_zyx]], dtype=np.int64)


def _labelled(source: str, octants: Any) -> list[list[int]]:
    if not isinstance(octants, list):
        raise CanvasError(f"{source}: 'octants' is {type(octants).__name__}; expected a list")
    boxes = []
    for row, octant in enumerate(octants):
        try:
            start = [octant["z"], octant["y"], octant["x"]]
            size, labelled = octant["size"], octant["labelled"]
        except (TypeError, KeyError) as problem:
            raise CanvasError(
                f"{source}: octant {row + 1} is {octant!r}; expected z, y, x, size and labelled"
            ) from problem
        sizes = size if isinstance(size, list) else [size] * 3
        if not all(isinstance(value, int) for value in (*start, *sizes)) or len(sizes) != 3:
            raise CanvasError(
                f"{source}: octant {row + 1} is {octant!r}; expected whole voxels in z, y, x, size"
            )
        if labelled is True:
            boxes.append([*start, *(a + b for a, b in zip(start, sizes, strict=True))])
    if not boxes:
        raise CanvasError(
            f"{source}: none of its {len(octants)} octants is labelled: nothing to train on or score"
        )
    return boxes
