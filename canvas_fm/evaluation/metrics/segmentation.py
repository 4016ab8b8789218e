"""Panoptic quality of instance segmentations in 3D: recognition and segmentation quality, block by block.

PQ = Σ IoU of matched objects / (TP + ½ FP + ½ FN) (Kirillov et al. 2019); RQ is the F1 and SQ the mean IoU of
the matches. Objects match at an IoU above ½, so that each has one partner at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Integer
from scipy import ndimage

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.progress import bar

MATCH_IOU = 0.5
BLOCK = 256  # voxels along each axis that are read at once


class PanopticQuality(NamedTuple):
    """Counts of objects, and the sum of the IoUs of the matched ones."""

    tp: int
    fp: int
    fn: int
    iou_sum: float

    @property
    def pq(self) -> float:
        """Panoptic quality; 1 where both volumes are empty."""
        return self._over(self.tp + (self.fp + self.fn) / 2)

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matches, 0 without any."""
        return self.iou_sum / self.tp if self.tp else float(self.fp + self.fn == 0)

    @property
    def rq(self) -> float:
        """Recognition quality: F1 of the objects."""
        whole = self.tp + (self.fp + self.fn) / 2
        return self.tp / whole if whole else 1.0

    def _over(self, whole: float) -> float:
        return self.iou_sum / whole if whole else 1.0

    @property
    def warning(self) -> str | None:
        """Warning where one volume has a single object and the other several, as a mask has."""
        predicted, truth = self.tp + self.fp, self.tp + self.fn
        if min(predicted, truth) != 1 or max(predicted, truth) == 1:
            return None
        one, other = ("predicted", "true") if predicted == 1 else ("true", "predicted")
        return (
            f"the {one} labels are one object where the {other} ones are {max(predicted, truth)}: if that is "
            "a mask of all cells, score its connected pieces (--components)"
        )

    def as_dict(self) -> dict[str, Any]:
        return {"pq": self.pq, "rq": self.rq, "sq": self.sq, "tp": self.tp, "fp": self.fp, "fn": self.fn}


Blocks = Iterable[tuple[Integer[np.ndarray, "z y x"], Integer[np.ndarray, "z y x"]]]


def panoptic_quality(
    predicted: Integer[np.ndarray, "z y x"] | Volume,
    truth: Integer[np.ndarray, "z_true y_true x_true"] | Volume,
    *,
    min_voxels: int = 1,
    block: int = BLOCK,
    show: bool | None = None,
) -> PanopticQuality:
    """Panoptic quality of two label volumes, 0 is background; memory grows by a block and by the objects.

    Objects of fewer than `min_voxels` are left out on both sides.
    """
    shapes = tuple(
        tuple(labels.shape_zyx if isinstance(labels, Volume) else labels.shape)
        for labels in (predicted, truth)
    )
    if shapes[0] != shapes[1]:
        raise CanvasError(f"the predicted labels have shape {shapes[0]}, the true ones {shapes[1]}")
    for labels in (predicted, truth):
        kind = labels.dtype.kind
        if kind not in "iu":
            raise CanvasError(f"a label volume holds whole numbers; one of the two holds {labels.dtype}")
    starts = list(product(*(range(0, size, block) for size in shapes[0])))

    def read(labels: Any, start: tuple[int, ...]) -> np.ndarray:
        stop = [min(at + block, size) for at, size in zip(start, shapes[0], strict=True)]
        if isinstance(labels, Volume):
            return labels.read(start, [b - a for a, b in zip(start, stop, strict=True)])
        return labels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]

    sums = _Overlaps()
    with bar("panoptic quality", len(starts), unit="blocks", show=show) as advance:
        for start in starts:
            sums.add(*(_check_from_zero(read(labels, start)) for labels in (predicted, truth)))
            advance()
    return sums.quality(min_voxels)


def _check_from_zero(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise CanvasError(f"a label volume holds numbers from 0 up; one of the two holds {labels.min()}")
    return labels


def connected_components(labels: Integer[np.ndarray, "z y x"] | Volume) -> Int32[np.ndarray, "z y x"]:
    """Labels of the 26-connected pieces of all that is not 0; the whole volume is held in memory."""
    whole = labels.read((0, 0, 0), labels.shape_zyx) if isinstance(labels, Volume) else labels
    pieces: Int32[np.ndarray, "z y x"]
    pieces, _ = ndimage.label(whole, structure=np.ones((3, 3, 3)), output=np.int32)
    return pieces


class _Overlaps:
    """Voxels of each object and of each pair of overlapping ones, summed over blocks."""

    def __init__(self) -> None:
        self.predicted: dict[int, int] = {}
        self.truth: dict[int, int] = {}
        self.both: dict[tuple[int, int], int] = {}

    def add(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        a, b = predicted.ravel(), truth.ravel()
        labelled = (a != 0) | (b != 0)
        a, b = a[labelled].astype(np.int64), b[labelled].astype(np.int64)
        ids, inverse = np.unique(b, return_inverse=True)
        names, of = np.unique(a, return_inverse=True)
        pairs, voxels = np.unique(of * len(ids) + inverse, return_counts=True)
        for pair, count in zip(pairs.tolist(), voxels.tolist(), strict=True):
            first, second = int(names[pair // len(ids)]), int(ids[pair % len(ids)])
            if first:
                self.predicted[first] = self.predicted.get(first, 0) + count
            if second:
                self.truth[second] = self.truth.get(second, 0) + count
            if first and second:
                self.both[first, second] = self.both.get((first, second), 0) + count

    def quality(self, min_voxels: int) -> PanopticQuality:
        predicted = {label: size for label, size in self.predicted.items() if size >= min_voxels}
        truth = {label: size for label, size in self.truth.items() if size >= min_voxels}
        matched = [
            iou
            for (first, second), common in self.both.items()
            if first in predicted and second in truth
            and (iou := common / (predicted[first] + truth[second] - common)) > MATCH_IOU
        ]  # fmt: skip
        tp = len(matched)
        return PanopticQuality(tp, len(predicted) - tp, len(truth) - tp, float(sum(matched)))
