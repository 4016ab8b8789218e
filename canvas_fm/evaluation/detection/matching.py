"""One-to-one matching of predicted to true centres: greedy as in the paper, and optimal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Real
from scipy.sparse import csr_array

from canvas_fm.data.points.points import as_zyx
from canvas_fm.evaluation.detection.pairs import Pairs, find_pairs, stable_order

_ROUNDS = 40
_DENSE = 400  # cells of a group up to which its dense cost matrix is quicker than a sparse one


class Matches(NamedTuple):
    """Matched rows by rising prediction: `pred_index[k]` with `truth_index[k]` at `distance[k]`."""

    pred_index: Int64[np.ndarray, " m"]
    truth_index: Int64[np.ndarray, " m"]
    distance: Float64[np.ndarray, " m"]


def match(
    pred_zyx: Real[np.ndarray, "n 3"],
    truth_zyx: Real[np.ndarray, "m 3"],
    *,
    tolerance: float,
    scale_zyx: Sequence[float] = (1.0, 1.0, 1.0),
    optimal: bool = False,
) -> Matches:
    """Match predictions one to one with truths within the tolerance.

    Distances are Euclidean after multiplying the axes by `scale_zyx`: (1, 1, 1) makes the tolerance one in
    voxels, the voxel size in µm one in µm. The greedy matching (section 4.2.1 of the CANVAS paper) takes
    the closest pair that is still free, over and over; of equally close pairs the one of the first
    prediction, then of the first truth. `optimal` instead matches as many as can be matched, and of all
    such ways takes one with the smallest sum of distances. Raises CanvasError where positions are not
    finite (n, 3) or the tolerance pairs almost everything with everything.
    """
    pred, truth = as_zyx(pred_zyx), as_zyx(truth_zyx)
    pairs = find_pairs(pred, truth, tolerance=tolerance, scale_zyx=scale_zyx)
    chosen = optimal_of(pairs) if optimal else greedy_of(pairs, len(pred), len(truth))
    order = np.argsort(chosen.pred)
    return Matches(chosen.pred[order], chosen.truth[order], chosen.distance[order])


def greedy_of(pairs: Pairs, n_pred: int, n_truth: int) -> Pairs:
    """Greedy matching: pairs by (distance, prediction, truth), each row at most once.

    A pair that comes first for its prediction and for its truth is kept whatever the others do, so all such
    pairs are taken at once and their rows dropped. A few rounds are enough unless cells form a chain of
    ever closer neighbours, which costs a round a link: what is left after some rounds is looped over.
    """
    taken: list[Pairs] = []
    for _ in range(_ROUNDS):
        if not len(pairs.pred):
            break
        truth_of = _nearest(pairs.pred, pairs.truth, pairs.distance, n_pred, n_truth)
        pred_of = _nearest(pairs.truth, pairs.pred, pairs.distance, n_truth, n_pred)
        mutual = (truth_of[pairs.pred] == pairs.truth) & (pred_of[pairs.truth] == pairs.pred)
        won = pairs.where(mutual)
        taken.append(won)
        free_pred, free_truth = np.ones(n_pred, dtype=bool), np.ones(n_truth, dtype=bool)
        free_pred[won.pred] = False
        free_truth[won.truth] = False
        pairs = pairs.where(free_pred[pairs.pred] & free_truth[pairs.truth])
    taken.append(_loop(pairs))
    return Pairs(*(np.concatenate(parts) for parts in zip(*taken, strict=True)))


def optimal_of(pairs: Pairs) -> Pairs:
    """Maximum matching of least total distance, exact for each connected component."""
    return _optimal_of(pairs, _by_group(pairs)) if len(pairs.pred) else pairs


def optimal_of_small(pairs: Pairs, largest: int) -> Pairs | None:
    """As `optimal_of`; None if a component has more predictions than `largest`: it costs their square."""
    if not len(pairs.pred):
        return pairs
    groups = _by_group(pairs)
    return _optimal_of(pairs, groups) if groups.preds.max() <= largest else None


def _optimal_of(pairs: Pairs, groups: _Groups) -> Pairs:
    # A group with one prediction, or one truth, can keep one pair only: its shortest.
    star = (groups.preds == 1) | (groups.truths == 1)
    in_star = np.flatnonzero(np.repeat(star, np.diff(groups.bounds)))
    first = np.lexsort((groups.distance[in_star], groups.of[in_star]))
    _, leads = np.unique(groups.of[in_star][first], return_index=True)
    chosen_pairs = [in_star[first[leads]]]
    for group in np.flatnonzero(~star).tolist():
        start, end = groups.bounds[group], groups.bounds[group + 1]
        rows = slice(start, end)
        shape = int(groups.preds[group]), int(groups.truths[group])
        chosen_pairs.append(start + _assign(groups.i[rows], groups.j[rows], groups.distance[rows], shape))
    chosen = groups.order[np.concatenate(chosen_pairs)]
    return Pairs(pairs.pred[chosen], pairs.truth[chosen], pairs.distance[chosen])


class _Groups(NamedTuple):
    """Pairs sorted by connected component: row k is pair order[k], group g begins at row bounds[g].

    `i` and `j` number the predictions and truths within their group, `preds` and `truths` say how many it
    has.
    """

    order: np.ndarray
    of: np.ndarray
    bounds: np.ndarray
    i: np.ndarray
    j: np.ndarray
    distance: np.ndarray
    preds: np.ndarray
    truths: np.ndarray


def _by_group(pairs: Pairs) -> _Groups:
    from scipy.sparse.csgraph import connected_components  # a fifth of a second; greedy matching needs none

    (n, pred), (m, truth) = _numbered(pairs.pred), _numbered(pairs.truth)
    graph = csr_array((np.ones(len(pred), np.int8), (pred, truth + n)), shape=(n + m, n + m))
    count, label = connected_components(graph, directed=False)
    of = label[pred]
    order = stable_order(of)
    sizes = [np.bincount(labels, minlength=count) for labels in (label[:n], label[n:])]
    return _Groups(
        order,
        of[order],
        np.concatenate([[0], np.cumsum(np.bincount(of, minlength=count))]),
        _number_within(label[:n], sizes[0])[pred[order]],
        _number_within(label[n:], sizes[1])[truth[order]],
        pairs.distance[order],
        *sizes,
    )


def _numbered(rows: Int64[np.ndarray, " e"]) -> tuple[int, Int64[np.ndarray, " e"]]:
    """Number of distinct rows, and the rank of each among them: `np.unique` without its sort."""
    rank = np.cumsum(np.bincount(rows) > 0) - 1
    return int(rank[-1]) + 1, rank[rows]


def _number_within(label: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Rank of each node among those of the same label."""
    order = stable_order(label)
    place = np.empty(len(label), np.int64)
    place[order] = np.arange(len(label)) - (np.cumsum(sizes) - sizes)[label[order]]
    return place


def _nearest(
    rows: Int64[np.ndarray, " e"],
    columns: Int64[np.ndarray, " e"],
    distance: Float64[np.ndarray, " e"],
    n_rows: int,
    n_columns: int,
) -> Int64[np.ndarray, " n_rows"]:
    """Nearest column of each row, ties to the lower index; n_columns where a row has none."""
    closest = np.full(n_rows, np.inf)
    np.minimum.at(closest, rows, distance)
    best = distance == closest[rows]
    nearest = np.full(n_rows, n_columns, dtype=np.int64)
    np.minimum.at(nearest, rows[best], columns[best])
    return nearest


def _loop(pairs: Pairs) -> Pairs:
    """Reference implementation of the greedy matching."""
    order = np.lexsort((pairs.truth, pairs.pred, pairs.distance))
    seen_pred: set[int] = set()
    seen_truth: set[int] = set()
    keep = []
    for row, pred, truth in zip(
        order.tolist(), pairs.pred[order].tolist(), pairs.truth[order].tolist(), strict=True
    ):
        if pred not in seen_pred and truth not in seen_truth:
            seen_pred.add(pred)
            seen_truth.add(truth)
            keep.append(row)
    chosen = np.array(keep, dtype=np.int64)
    return Pairs(pairs.pred[chosen], pairs.truth[chosen], pairs.distance[chosen])


def _assign(
    i: Int64[np.ndarray, " e"],
    j: Int64[np.ndarray, " e"],
    distance: Float64[np.ndarray, " e"],
    shape: tuple[int, int],
) -> Int64[np.ndarray, " k"]:
    """Rows of one component's optimal matching; i, j number its predictions and truths."""
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    # Leaving one more prediction unmatched has to cost more than any sum of distances could save.
    unmatched = (min(shape) + 1) * (distance.max() + 1.0)
    if max(shape) <= _DENSE:
        cost = np.full(shape, unmatched)
        cost[i, j] = distance
        at = np.full(shape, -1)
        at[i, j] = np.arange(len(i))
        chosen = at[linear_sum_assignment(cost)]
        return chosen[chosen >= 0]
    # Every prediction gets a column of its own for staying unmatched; zeros would be read as no pair, hence
    # the 1.
    n, m = shape
    diagonal = np.arange(n)
    weights = np.concatenate([distance + 1.0, np.full(n, unmatched + 1.0)])
    graph = csr_array(
        (weights, (np.concatenate([i, diagonal]), np.concatenate([j, m + diagonal]))), shape=(n, m + n)
    )
    rows, columns = min_weight_full_bipartite_matching(graph)
    truth_of = np.empty(n, np.int64)
    truth_of[rows] = columns
    return np.flatnonzero(truth_of[i] == j)
