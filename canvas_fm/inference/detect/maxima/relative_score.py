"""Brightness in a detection's score, against typical, strongest or the brighter kind of detections around.

A net that has learned from bright somata gives the dim cells of another brain little heat, and the processes
of bright ones as much. What is a cell shows beside the strongest of the same tissue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import product

import numpy as np
from jaxtyping import Float32, Float64, Int64

from canvas_fm.data.zyx import Zyx, ZyxUm
from canvas_fm.models.folder.network_config import RelativeConfig

_log = logging.getLogger(__name__)

LEAST_AMPLITUDE = 1e-3  # in the amplitude's unit; one below counts as this
LEAST_HEAT = 0.05  # maxima of the smoothed heat below are no candidates and no reference
_FEWEST = 20  # of fewer detections nothing tells whether they are of two kinds
_SURE = -2.0  # logit from which a detection counts among either kind
_SHARE = 0.2  # of the detections' weight that either kind has at least: some specks are no kind
# Standard deviation of the bright ones' log amplitude up to which they are of one kind, and from which not:
# that of microglia is .3 to .6, of specks and debris along an edge of the tissue .8 and more.
_ONE_KIND, _MIXED = 0.65, 0.8


def relative_scores(
    position_zyx: Float64[np.ndarray, "n 3"],
    score: Float32[np.ndarray, " n"],
    voxel_um: ZyxUm,
    config: RelativeConfig,
    amplitude: Float32[np.ndarray, " n"] | None = None,
    amplitude_weight: float = 1.0,
    *,
    typical: bool = False,
    classes_apart: tuple[float, float] | None = None,
) -> Float32[np.ndarray, " n"]:
    """logit(score) − weight · logit(reference) as a probability.

    The reference is the score of the `rank`-th strongest detection in the block of `block_um` that holds the
    position and the 26 around it, and `least` at least: where there are no cells nothing is to become one.
    With `amplitude`, `amplitude_weight` times its logarithm over the `rank`-th largest of the same blocks is
    added, or with `typical` over their median, in which a detection counts by the square of its score: a few
    specks far brighter than any cell move the largest, and hardly the median. With `classes_apart` it is the
    median of the bright ones, as far as these are so many times brighter than the dim ones: not at all below
    the first number, in full from the second on, and only where the bright ones differ little. Blocks start
    at the volume's first voxel, so tiles give what one pass gives; a box sees its own alone, and has other
    scores than the volume: `reference_box` says where to detect for the same.
    """
    if not len(score):
        return score
    logit = _logit(score.astype(np.float64))
    block = _blocks(position_zyx, voxel_um, config)
    least = np.float64(config.least)
    joint = logit - config.weight * np.maximum(_ranked_around(logit, block, config.rank), _logit(least))
    if amplitude is not None:
        log_amplitude = log_of(amplitude)
        if typical:
            sureness = np.square(score.astype(np.float64))
            reference = _typical_around(
                log_amplitude, sureness, logit, block, amplitude_weight, classes_apart
            )
        else:
            reference = _ranked_around(log_amplitude, block, config.rank)
        joint += amplitude_weight * (log_amplitude - reference)
    return (1 / (1 + np.exp(-joint))).astype(np.float32)


def typical_amplitudes(
    position_zyx: Float64[np.ndarray, "n 3"],
    score: Float32[np.ndarray, " n"],
    amplitude: Float32[np.ndarray, " n"],
    voxel_um: ZyxUm,
    config: RelativeConfig,
    amplitude_weight: float,
    classes_apart: tuple[float, float] | None,
) -> dict[Zyx, float]:
    """By block, what the log amplitude of a place in it is compared with by `relative_scores`, if `typical`.

    Of all blocks that hold one of these detections, or lie beside one that does.
    """
    log_amplitude, logit = log_of(amplitude), _logit(score.astype(np.float64))
    rows_of = _rows_by_block(log_amplitude, _blocks(position_zyx, voxel_um, config))
    sureness = np.square(score.astype(np.float64))
    typical, _ = _typical(log_amplitude, sureness, logit, amplitude_weight, classes_apart)
    around = sorted({other for key in rows_of for other in _with_neighbours(key)})
    return {key: typical(_near(rows_of, key)) for key in around}


def _blocks(
    position_zyx: Float64[np.ndarray, "n 3"], voxel_um: ZyxUm, config: RelativeConfig
) -> Int64[np.ndarray, "n 3"]:
    """The block of each place."""
    return np.floor(position_zyx * np.asarray(voxel_um) / config.block_um + 1e-9).astype(np.int64)


def log_of(amplitude: Float32[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Logarithm of amplitudes, in the unit in which the least is `LEAST_AMPLITUDE`."""
    return np.asarray(np.log(np.maximum(amplitude.astype(np.float64), LEAST_AMPLITUDE)))


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


def _typical_around(
    value: Float64[np.ndarray, " n"],
    weight: Float64[np.ndarray, " n"],
    logit: Float64[np.ndarray, " n"],
    block: Int64[np.ndarray, "n 3"],
    value_weight: float,
    classes_apart: tuple[float, float] | None,
) -> Float64[np.ndarray, " n"]:
    typical, gaps = _typical(value, weight, logit, value_weight, classes_apart)
    reference = _around(value, block, typical)
    if gaps:
        _log.info(
            "detections are of two kinds, one some %.0f times brighter: the dim kind scores low, as "
            "processes and debris do; if these are cells too, take a lower threshold",
            np.exp(np.median(gaps)),
        )
    return reference


def _typical(
    value: Float64[np.ndarray, " n"],
    weight: Float64[np.ndarray, " n"],
    logit: Float64[np.ndarray, " n"],
    value_weight: float,
    classes_apart: tuple[float, float] | None,
) -> tuple[Callable[[list[Int64[np.ndarray, " k"]]], float], list[float]]:
    """The weighted median of the values in a block and the 26 around it, or of the bright ones.

    And a list of how far the classes lie apart, of each block where that counts, which grows by its calls.
    """
    gaps: list[float] = []

    def typical(near: list[Int64[np.ndarray, " k"]]) -> float:
        rows = np.concatenate(near)
        rows = rows[np.argsort(-value[rows], kind="stable")]  # which merges what is sorted by block
        of_all = _median(value[rows], weight[rows])
        if classes_apart is None or len(rows) < _FEWEST:
            return of_all
        sure = rows[logit[rows] + value_weight * (value[rows] - of_all) > _SURE]
        if len(sure) < _FEWEST:
            return of_all
        n_bright, apart = two_classes(value[sure], weight[sure])
        bright = sure[:n_bright]
        first, full = np.log(classes_apart)
        spread = _deviation(value[bright], weight[bright])
        part = float(np.clip((apart - first) / (full - first), 0, 1))
        part *= float(np.clip((_MIXED - spread) / (_MIXED - _ONE_KIND), 0, 1))
        if part:
            gaps.append(apart)
        return of_all + part * max(_median(value[bright], weight[bright]) - of_all, 0.0)

    return typical, gaps


def two_classes(value: Float64[np.ndarray, " n"], weight: Float64[np.ndarray, " n"]) -> tuple[int, float]:
    """Split values, largest first, by Otsu's method: size of the upper class, and medians' distance.

    Both classes have a fifth of the weight at least. (n, 0) where no split leaves that.
    """
    passed, sums = np.cumsum(weight), np.cumsum(weight * value)
    share = passed[:-1] / passed[-1]
    upper = sums[:-1] / passed[:-1]
    lower = (sums[-1] - sums[:-1]) / np.maximum(passed[-1] - passed[:-1], 1e-12)
    between = share * (1 - share) * (upper - lower) ** 2
    between[(share < _SHARE) | (share > 1 - _SHARE)] = -1
    at = int(between.argmax())
    if between[at] <= 0:
        return len(value), 0.0
    upper_class, lower_class = slice(at + 1), slice(at + 1, None)
    apart = _median(value[upper_class], weight[upper_class]) - _median(
        value[lower_class], weight[lower_class]
    )
    return at + 1, apart


def _deviation(value: Float64[np.ndarray, " n"], weight: Float64[np.ndarray, " n"]) -> float:
    """The weighted standard deviation of values."""
    share = weight / weight.sum()
    return float(np.sqrt(np.sum(share * np.square(value - np.sum(share * value)))))


def _median(value: Float64[np.ndarray, " n"], weight: Float64[np.ndarray, " n"]) -> float:
    """The weighted median of values, largest first.

    Between two values in proportion: a score's last digit does not move it to the next one.
    """
    passed = np.cumsum(weight)
    return float(np.interp(passed[-1] / 2, passed - weight / 2, value))


def _around(
    value: Float64[np.ndarray, " n"],
    block: Int64[np.ndarray, "n 3"],
    reference_of: Callable[[list[Int64[np.ndarray, " k"]]], float],
) -> Float64[np.ndarray, " n"]:
    """For each one `reference_of` the rows in its block and the 26 around it, largest values first."""
    rows_of = _rows_by_block(value, block)
    at = np.empty(len(value))
    for key, rows in rows_of.items():
        at[rows] = reference_of(_near(rows_of, key))
    return at


def _rows_by_block(
    value: Float64[np.ndarray, " n"], block: Int64[np.ndarray, "n 3"]
) -> dict[Zyx, Int64[np.ndarray, " _"]]:
    """The rows of each block that has any, largest values first."""
    order = np.lexsort((-value, *block.T[::-1]))
    blocks, first = np.unique(block[order], axis=0, return_index=True)
    ends = np.append(first[1:], len(order))
    return {
        (z, y, x): order[start:end]
        for (z, y, x), start, end in zip(blocks.tolist(), first, ends, strict=True)
    }


def _near(rows_of: dict[Zyx, Int64[np.ndarray, " _"]], key: Zyx) -> list[Int64[np.ndarray, " _"]]:
    """The rows of a block and of each of the 26 around it that has any."""
    return [rows_of[other] for other in _with_neighbours(key) if other in rows_of]


def _with_neighbours(key: Zyx) -> list[Zyx]:
    z, y, x = key
    return [(z + dz, y + dy, x + dx) for dz, dy, dx in product((-1, 0, 1), repeat=3)]


def _logit(p: np.ndarray | np.float64) -> np.ndarray:
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)))
