"""Checks of predictions before scoring: which rows are cells, and plausibility warnings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from canvas_fm.data.points.boxes import inside_boxes
from canvas_fm.data.points.label_values import as_labels
from canvas_fm.data.points.points import SCORE_COLUMNS, Points, repeated_rows, score_column
from canvas_fm.errors import CanvasError, counted
from canvas_fm.evaluation.detection.confusion_counts import Counts
from canvas_fm.evaluation.detection.matching import greedy_of
from canvas_fm.evaluation.detection.pairs import MOST_PAIRS, find_pairs
from canvas_fm.evaluation.detection.tolerance import Tolerance

_CELL, _NO_CELL = 2, 1  # cellfinder's types


def cells_of(points: Points, role: str) -> tuple[Points, list[str]]:
    """The rows that represent cells, and a message for each group left out.

    Of cellfinder's types 1 is not a cell (in predictions that are all of type 1: not classified yet). In a
    truth, a column `label` of 1, 0 and −1 (cell, not a cell, ambiguous) keeps the cells; in predictions it
    is an answer and is not looked at.
    """
    keep, why = None, ""
    types = points.columns.get("type")
    if (
        types is not None
        and types.dtype.kind in "iu"
        and len(types)
        and np.isin(types, (_CELL, _NO_CELL)).all()
    ):
        keep, why = types == _CELL, "cellfinder's type 1 (not a cell)"
        if not keep.any() and role == "predictions":
            return points, [
                f"all {len(points):,} predictions are of cellfinder's type 1: not classified, all scored"
            ]
    column = points.columns.get("label")
    labels = None if column is None else as_labels(column)
    if role == "truth" and labels is not None:
        keep, why = labels == 1, "a label of 0 or −1 (not a cell, ambiguous)"
    if keep is None and role == "truth" and column is not None and len(column) and column.dtype.kind == "U":
        values = ", ".join(dict.fromkeys(column[:1000].tolist()))[:60]
        return points, [
            f"the truth's column `label` holds texts ({values}), not 1, 0 and −1: every row counts as a cell"
        ]
    if keep is None or keep.all():
        return points, []
    if not keep.any():
        raise CanvasError(
            f"none of the {counted(len(points), 'row')} of the {role} is a cell: all have {why}"
        )
    columns = {name: values[keep] for name, values in points.columns.items()}
    note = (
        f"{int((~keep).sum()):,} of {counted(len(points), 'row')} of the {role} have {why} and were left out"
    )
    return Points(points.zyx[keep], columns, points.meta), [note]


def scores_of(points: Points, column: str | None, *, needed: bool) -> Float64[np.ndarray, " n"] | None:
    """Score of each prediction, None if there is no score column; CanvasError for text or NaN."""
    name = column or score_column(points)
    if name is None:
        if needed:
            raise CanvasError(
                f"a threshold was given, but the predictions have no column {', '.join(SCORE_COLUMNS)}; "
                "name theirs with --score-column"
            )
        return None
    if name not in points.columns:
        raise CanvasError(
            f"the predictions have no column {name!r}; they have {', '.join(points.columns) or 'none'}"
        )
    values = points.columns[name]
    if values.dtype.kind not in "iufb":
        text = next((value for value in values.tolist() if not _is_number(value)), "")
        raise CanvasError(f"the column {name!r} holds text, such as {text!r}; expected numbers")
    if np.isnan(values.astype(np.float64)).any():
        row = int(np.argmax(np.isnan(values.astype(np.float64))))
        raise CanvasError(
            f"the column {name!r} is not a number in row {row + 1}; give every prediction a score"
        )
    return values.astype(np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def sanity_warnings(
    pred: Points,
    truth: Points,
    counts: Counts,
    tolerance: Tolerance,
    boxes: np.ndarray | None,
    shape_zyx: Sequence[int] | None,
    voxel_um: Sequence[float] | None,
) -> list[str]:
    """A sentence for everything that makes the score doubtful though it can be worked out."""
    warnings = []
    for name, points in (("predictions", pred), ("truth", truth)):
        if not len(points):
            warnings.append(f"the {name} are empty" if name == "predictions" else "the truth is empty")
        if repeated := repeated_rows(points.zyx):
            warnings.append(
                f"{repeated:,} of {counted(len(points), 'row')} of the {name} repeat a position "
                "of another row"
            )
        if shape_zyx is not None and (outside := int((~points.inside(shape_zyx)).sum())):
            warnings.append(
                f"{outside:,} of {counted(len(points), 'row')} of the {name} lie outside the "
                f"volume {tuple(shape_zyx)}"
            )
        if boxes is not None and len(points) and not inside_boxes(points.zyx, boxes).any():
            warnings.append(
                f"none of the {counted(len(points), 'row')} of the {name} lies in the boxes that are scored"
            )
    return warnings + _better_axes(pred, truth, counts, tolerance, voxel_um)


def _better_axes(
    pred: Points, truth: Points, counts: Counts, tolerance: Tolerance, voxel_um: Sequence[float] | None
) -> list[str]:
    """A warning if another axis order of the predictions would match far better."""
    f1 = counts.f1
    if f1 is None or f1 >= 0.5 or not len(pred) or not len(truth):
        return []
    readings = {"x, y, z": pred.zyx[:, ::-1], "z, x, y": pred.zyx[:, [0, 2, 1]]}
    if voxel_um is not None:
        readings["z, y, x in micrometres"] = pred.zyx / np.asarray(voxel_um)
    better = {}
    for name, zyx in readings.items():
        if len(zyx) * 20 > MOST_PAIRS:
            continue
        pairs = find_pairs(
            np.ascontiguousarray(zyx), truth.zyx, tolerance=tolerance.value, scale_zyx=tolerance.scale_zyx
        )
        tp = len(greedy_of(pairs, len(pred), len(truth)).pred)
        better[name] = 2 * tp / (len(pred) + len(truth))
    name = max(better, key=lambda key: better[key])
    if better[name] < max(f1 + 0.2, 2 * f1):
        return []
    return [
        f"the predictions would match far better as {name}: F1 {better[name]:.2f} instead of "
        f"{f1:.2f}; both files have to hold z, y, x in voxels of level 0"
    ]
