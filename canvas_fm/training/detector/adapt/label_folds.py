"""Few labelled cells of one brain as spatial folds: blocks of the labelled boxes, and counts in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from canvas_fm.data.points.boxes import box_of
from canvas_fm.data.points.points import Points
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError, counted
from canvas_fm.evaluation.detection.curve import score_curve
from canvas_fm.evaluation.detection.pairs import find_pairs
from canvas_fm.evaluation.domains.scores import THRESHOLDS
from canvas_fm.training.detector.targets import Labelled

RESAMPLES = 400
_BLOCKS = 24  # a labelled region is cut into about so many: the unit that is drawn with replacement
_FEWEST = 2  # cells a fold, on average: with fewer there is nothing to validate on
_KEY = 0xADA97  # keeps these draws apart from others with the same seed

Counts = Int64[np.ndarray, "t b 3"]  # TP, FP, FN at each threshold of `THRESHOLDS` in each block


@dataclass(frozen=True)
class LabelFolds:
    """The labelled boxes cut into blocks, and the fold of each block.

    Folds are slabs along the longest axis that hold about as many cells: neighbours stand on one side, but
    for those along the cuts.
    """

    labelled: Labelled
    tolerance_um: float
    blocks: Int64[np.ndarray, "b 6"]
    fold: Int64[np.ndarray, " b"]

    @classmethod
    def of(cls, labelled: Labelled, tolerance_um: float, folds: int) -> LabelFolds:
        """At most `folds` folds; CanvasError where the cells are too few or too near to make two."""
        cells, um = labelled.inner_zyx, labelled.source.volume.voxel_um
        blocks = cut_into_blocks(labelled.boxes, um, 2 * tolerance_um)
        fold = _slabs(blocks, np.bincount(box_of(cells, blocks), minlength=len(blocks)), um,
                      min(folds, len(cells) // _FEWEST))  # fmt: skip
        if fold.max(initial=0) < 1:
            raise CanvasError(
                f"{counted(len(cells), 'labelled cell', 'lie')} inside the boxes of "
                f"{labelled.source.name}, too few or too "
                "near each other to divide into two parts; label 10 or more in boxes that hold them all"
            )
        return cls(labelled, tolerance_um, blocks, fold)

    @property
    def count(self) -> int:
        return int(self.fold.max()) + 1

    def counts(self, candidates: Points) -> Counts:
        """Counts of the candidates at or above each threshold, by the block in which a row lies."""
        um = self.labelled.source.volume.voxel_um
        truth, scores = self.labelled.points_zyx, candidates.columns["score"].astype(np.float64)
        pairs = find_pairs(candidates.zyx, truth, tolerance=self.tolerance_um, scale_zyx=um)
        of_candidate, of_cell = box_of(candidates.zyx, self.blocks), box_of(truth, self.blocks)
        counts = np.zeros((len(THRESHOLDS), len(self.blocks), 3), np.int64)
        for block in range(len(self.blocks)):
            curve = score_curve(pairs, scores, of_candidate == block, of_cell == block)
            # Thresholds fall: the last one that is still at or above a grid value holds its counts.
            last = np.searchsorted(-curve.threshold, -THRESHOLDS, side="right") - 1
            tp, fp = (
                np.where(last >= 0, part[last], 0) if len(part) else np.zeros(len(THRESHOLDS), np.int64)
                for part in (curve.tp, curve.fp)
            )
            counts[:, block] = np.stack([tp, fp, curve.truths - tp], axis=1)
        return counts


def cut_into_blocks(
    boxes: Int64[np.ndarray, "k 6"], voxel_um: ZyxUm, least_um: float
) -> Int64[np.ndarray, "b 6"]:
    """The boxes halved along their longest sides into about 24 blocks, none with a side under `least_um`."""
    um = np.asarray(voxel_um)
    blocks: list[np.ndarray] = [box.copy() for box in boxes]
    whole: list[np.ndarray] = []
    while blocks and len(blocks) + len(whole) < _BLOCKS:
        sizes = [float(((box[3:] - box[:3]) * um).prod()) for box in blocks]
        box = blocks.pop(int(np.argmax(sizes)))
        side = (box[3:] - box[:3]) * um
        axis = int(np.argmax(side))
        if side[axis] < 2 * least_um or box[3 + axis] - box[axis] < 2:
            whole.append(box)
            continue
        middle = (box[axis] + box[3 + axis]) // 2
        low, high = box.copy(), box.copy()
        low[3 + axis] = high[axis] = middle
        blocks += [low, high]
    return np.array([*whole, *blocks], np.int64)


def _slabs(
    blocks: Int64[np.ndarray, "b 6"], cells: Int64[np.ndarray, " b"], voxel_um: ZyxUm, folds: int
) -> Int64[np.ndarray, " b"]:
    """Which slab each block belongs to; each holds a cell at least."""
    centres = (blocks[:, :3] + blocks[:, 3:]) / 2 * np.asarray(voxel_um)
    axis = int(np.argmax(np.ptp(centres, axis=0)))
    order = np.lexsort((*np.delete(centres, axis, axis=1).T, centres[:, axis]))
    before = np.cumsum(cells[order]) - cells[order] / 2
    slab = np.empty(len(blocks), np.int64)
    slab[order] = np.clip(before / max(cells.sum(), 1) * folds, 0, max(folds - 1, 0)).astype(np.int64)
    with_cells = np.unique(slab[cells > 0])
    return np.maximum(np.searchsorted(with_cells, slab, side="right") - 1, 0)


def f1_of(counts: Int64[np.ndarray, "*more 3"]) -> Float64[np.ndarray, "*more"]:
    """F1 of TP, FP, FN; 0 where all three are 0."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return np.asarray(2 * tp / np.maximum(2 * tp + fp + fn, 1))


def drawn_blocks(blocks: int, seed: int) -> Int64[np.ndarray, "r b"]:
    """Which blocks each resample holds."""
    return np.random.default_rng([_KEY, seed]).integers(blocks, size=(RESAMPLES, blocks))


def best_threshold(counts: Counts, seed: int, start: float) -> float:
    """The threshold of the highest lower bound of F1's gain over the threshold `start`, on resampled blocks.

    The bound is the mean less one deviation: the threshold where the mean itself is highest follows the
    jagged curve of a few cells too far.
    """
    drawn = drawn_blocks(counts.shape[1], seed)
    weights = np.stack([np.bincount(row, minlength=counts.shape[1]) for row in drawn])
    f1 = f1_of(np.einsum("rb,tbc->rtc", weights, counts))
    gain = f1 - f1[:, [nearest(start)]]
    bound = gain.mean(axis=0) - gain.std(axis=0)
    # A plateau's middle is the farthest from where the bound falls.
    best = np.flatnonzero(bound >= bound.max() - 1e-9)
    return round(float(THRESHOLDS[best[len(best) // 2]]), 4)


def logit(p: Float64[np.ndarray, "*shape"] | float) -> Float64[np.ndarray, "*shape"]:
    """Log-odds, finite at 0 and 1."""
    inside = np.clip(np.asarray(p, np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside / (1 - inside)))


def nearest(threshold: float) -> int:
    """The place in the grid of the threshold nearest to this one."""
    return int(np.argmin(np.abs(THRESHOLDS - threshold)))


def counts_at(counts: Counts, threshold: float) -> Int64[np.ndarray, "b 3"]:
    """The counts of every block at the grid's threshold nearest to this one."""
    return counts[nearest(threshold)]


def cross_fitted(
    counts: Counts,
    fold: Int64[np.ndarray, " b"],
    seed: int,
    start: float,
    chosen_by: Counts | None = None,
) -> Int64[np.ndarray, "b 3"]:
    """The counts of every block at the threshold that was chosen on the other folds, by `chosen_by` there."""
    chosen_by = counts if chosen_by is None else chosen_by
    held = np.empty((len(fold), 3), np.int64)
    for number in range(int(fold.max()) + 1):
        at = best_threshold(chosen_by[:, fold != number], seed, start)
        held[fold == number] = counts_at(counts, at)[fold == number]
    return held
