"""Order of review: candidates by uncertainty, diversity, disagreement, or at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, Real, Shaped

Order = Literal["uncertain", "random", "disagreement", "diverse"]
ORDERS: tuple[Order, ...] = ("uncertain", "random", "disagreement", "diverse")
RANDOM_EVERY = (
    5  # one in five is of the random order whatever the order: for the count and for held-out scores
)
_CLUSTERS = 16


def random_order(n: int, seed: int) -> Int64[np.ndarray, " n"]:
    """A permutation of the candidates, the same for a seed."""
    return np.random.default_rng((seed, 0x0DE5)).permutation(n).astype(np.int64)


def uncertain_order(
    p_cell: Float64[np.ndarray, " n"], threshold: float, seed: int = 0
) -> Int64[np.ndarray, " n"]:
    """The nearest to the threshold in log-odds first; ties at random."""
    p = np.clip(p_cell, 1e-9, 1 - 1e-9)
    middle = float(np.clip(threshold, 1e-9, 1 - 1e-9))
    distance = np.abs(np.log(p / (1 - p)) - np.log(middle / (1 - middle)))
    return np.lexsort((random_order(len(p), seed), distance)).astype(np.int64)


def first_order(score: Float64[np.ndarray, " n"] | None, n: int, seed: int = 0) -> Int64[np.ndarray, " n"]:
    """Before anything is learned: the best 1/64 by score, the next 1/64, the next 1/32 … in turn, at random.

    How many candidates are cells is not known yet: whether few or most, some of both are met soon. Those next
    to a threshold that does not fit this brain are all of one kind.
    """
    drawn = random_order(n, seed)
    if score is None:
        return drawn
    from_top = np.empty(n)
    from_top[np.argsort(-score, kind="stable")] = (np.arange(n) + 0.5) / n
    return diverse_order(np.clip(np.ceil(np.log2(from_top)), -6, 0), drawn, seed)


def diverse_order(
    groups: Shaped[np.ndarray, " n"], first: Int64[np.ndarray, " n"], seed: int = 0
) -> Int64[np.ndarray, " n"]:
    """One of each group in turn (clusters, regions), within a group as in the order `first`."""
    place = np.empty(len(first), np.int64)
    place[first] = np.arange(len(first))
    _, group = np.unique(groups, return_inverse=True)
    order = np.lexsort((place, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    shuffled = np.random.default_rng((seed, 0xD15E)).permutation(int(group.max(initial=0)) + 1)
    return np.lexsort((shuffled[group], turn)).astype(np.int64)


def disagreement_order(
    labels: Mapping[str, Mapping[int, int]],
    annotator: str,
    rest: Int64[np.ndarray, " n"],
    p_cell: Float64[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Rows on which others differ, then those of one other (least expected first), then the rest."""
    rank: dict[int, float] = {}
    for row in {row for name, of in labels.items() if name != annotator for row in of}:
        votes = [of[row] for name, of in labels.items() if name != annotator and row in of]
        if len(set(votes)) > 1 or -1 in votes:
            rank[row] = 0.0
        else:
            rank[row] = 1 + (1 - abs(votes[0] - p_cell[row])) / 2
    answered = np.zeros(len(rest), bool)
    answered[list(rank)] = True
    first = rest[answered[rest]]  # in the order of the rest, which breaks ties
    by_rank = np.argsort([rank[row] for row in first.tolist()], kind="stable")
    return np.concatenate([first[by_rank], rest[~answered[rest]]]).astype(np.int64)


def clusters_of(features: Real[np.ndarray, "n d"], seed: int = 0) -> Int64[np.ndarray, " n"]:
    """Cluster of each row by k-means on standardised features."""
    from sklearn.cluster import MiniBatchKMeans

    x = np.asarray(features, np.float32)
    deviation = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0)
    count = min(_CLUSTERS, len(np.unique(x, axis=0)))
    if count < 2:
        return np.zeros(len(x), np.int64)
    model = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=1024)
    return model.fit_predict(x).astype(np.int64)
