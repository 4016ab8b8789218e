"""A detection's score against the strongest detections around it: what keeps one threshold for many brains.

A net that has learned from bright somata gives the dim cells of another brain little heat, and the processes
of bright ones as much. What is a cell shows beside the strongest of the same tissue.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from jaxtyping import Float32, Float64, Int64

from canvas_fm.data.zyx import Zyx, ZyxUm
from canvas_fm.models.folder.config import RelativeConfig

LEAST_AMPLITUDE = 1e-3  # in the amplitude's unit; one below counts as this
LEAST_HEAT = 0.05  # maxima of the smoothed heat below are no candidates and no reference


def relative_scores(
    position_zyx: Float64[np.ndarray, "n 3"],
    score: Float32[np.ndarray, " n"],
    voxel_um: ZyxUm,
    config: RelativeConfig,
    amplitude: Float32[np.ndarray, " n"] | None = None,
    amplitude_weight: float = 1.0,
    *,
    typical: bool = False,
) -> Float32[np.ndarray, " n"]:
    """logit(score) − weight · logit(reference) as a probability.

    The reference is the score of the `rank`-th strongest detection in the block of `block_um` that holds the
    position and the 26 around it, and `least` at least: where there are no cells nothing is to become one.
    With `amplitude`, `amplitude_weight` times its logarithm over the `rank`-th largest of the same blocks is
    added, or with `typical` over their median, in which a detection counts by the square of its score: a few
    specks far brighter than any cell move the largest, and hardly the median. Blocks start at the volume's
    first voxel, so tiles give what one pass gives; a box sees its own alone, and has other scores than the
    volume: `reference_box` says where to detect for the same.
    """
    if not len(score):
        return score
    logit = _logit(score.astype(np.float64))
    block = np.floor(position_zyx * np.asarray(voxel_um) / config.block_um + 1e-9).astype(np.int64)
    least = np.float64(config.least)
    joint = logit - config.weight * np.maximum(_ranked_around(logit, block, config.rank), _logit(least))
    if amplitude is not None:
        log_amplitude = np.log(np.maximum(amplitude.astype(np.float64), LEAST_AMPLITUDE))
        if typical:
            reference = _median_around(log_amplitude, np.square(score.astype(np.float64)), block)
        else:
            reference = _ranked_around(log_amplitude, block, config.rank)
        joint += amplitude_weight * (log_amplitude - reference)
    return (1 / (1 + np.exp(-joint))).astype(np.float32)


def reference_box(
    box: Int64[np.ndarray, " 6"], shape_zyx: Zyx, voxel_um: ZyxUm, margin_um: float, config: RelativeConfig
) -> Int64[np.ndarray, " 6"]:
    """The box to detect in, so that scores inside `box` are those of a detection of the whole volume.

    Both are z0, y0, x0, z1, y1, x1 in voxels of the volume. It holds every block around a place in `box` and
    ends at the volume; `margin_um` is how far a position may lie outside `box`, as after resampling.
    """
    um, edge = np.asarray(voxel_um), config.block_um
    first = np.floor((box[:3] * um - margin_um) / edge) - 1
    after = np.floor((box[3:] * um + margin_um) / edge) + 2
    low, high = np.floor((first * edge - margin_um) / um), np.ceil((after * edge + margin_um) / um)
    shape = np.asarray(shape_zyx)
    return np.concatenate([np.maximum(low, 0), np.minimum(high, shape)]).astype(np.int64)


def _ranked_around(
    value: Float64[np.ndarray, " n"], block: Int64[np.ndarray, "n 3"], rank: int
) -> Float64[np.ndarray, " n"]:
    """The `rank`-th largest value in each one's block and the 26 around it, or the least of fewer."""

    def ranked(near: list[Int64[np.ndarray, " k"]]) -> float:
        together = np.sort(value[np.concatenate([rows[:rank] for rows in near])])[::-1]
        return together[min(rank, len(together)) - 1]

    return _around(value, block, ranked)


def _median_around(
    value: Float64[np.ndarray, " n"], weight: Float64[np.ndarray, " n"], block: Int64[np.ndarray, "n 3"]
) -> Float64[np.ndarray, " n"]:
    """The weighted median of the values in each one's block and the 26 around it."""

    def median(near: list[Int64[np.ndarray, " k"]]) -> float:
        rows = np.concatenate(near)
        rows = rows[np.argsort(-value[rows], kind="stable")]  # which merges what is sorted by block
        passed = np.cumsum(weight[rows])
        # Between two values in proportion: a score's last digit does not move the median to the next one.
        return float(np.interp(passed[-1] / 2, passed - weight[rows] / 2, value[rows]))

    return _around(value, block, median)


def _around(
    value: Float64[np.ndarray, " n"],
    block: Int64[np.ndarray, "n 3"],
    reference_of: Callable[[list[Int64[np.ndarray, " k"]]], float],
) -> Float64[np.ndarray, " n"]:
    """For each one `reference_of` the rows in its block and the 26 around it, largest values first."""
    order = np.lexsort((-value, *block.T[::-1]))
    blocks, first, of = np.unique(block[order], axis=0, return_index=True, return_inverse=True)
    ends = np.append(first[1:], len(order))
    rows_of = {
        tuple(key): order[start:end] for key, start, end in zip(blocks.tolist(), first, ends, strict=True)
    }
    reference = np.empty(len(blocks))
    for row, (z, y, x) in enumerate(blocks.tolist()):
        reference[row] = reference_of(
            [
                rows_of[key]
                for dz, dy, dx in product((-1, 0, 1), repeat=3)
                if (key := (z + dz, y + dy, x + dx)) in rows_of
            ]
        )
    at = np.empty(len(value))
    at[order] = reference[of.reshape(-1)]
    return at


def _logit(p: np.ndarray | np.float64) -> np.ndarray:
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)))
