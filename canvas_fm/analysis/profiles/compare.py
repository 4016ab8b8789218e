"""Regions whose cells look different between two groups of brains: mean, cluster shares, novelty."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Bool, Float64, Int64

from canvas_fm.analysis.groups.compare import benjamini_hochberg, welch
from canvas_fm.analysis.profiles.cells import ProfileStudy, normalised
from canvas_fm.analysis.profiles.profile_flags import ProfileOptions
from canvas_fm.errors import CanvasError

NOVEL = 0.95  # a cell is novel that lies farther from the controls than this share of control cells
NEIGHBOUR = 5
_REFERENCE = 4_000  # cells of a control brain that novelty is measured against
_FIT = 5_000  # cells of a brain that clusters are fitted on
_PERMUTATIONS = 10_000


@dataclass(frozen=True)
class ProfileComparison:
    """Group `second` against `first`, the controls, one entry a region.

    `novelty` (b, r) and `share` (b, r, c) are shares of a brain's cells in a region, NaN where it has none.
    `shift` is the distance between the groups' mean embeddings, in deviations of control cells; its p-value
    is by permutation of brains. Differences of shares are of logits, by Welch's t-test. q-values are
    corrected over regions, and over regions and clusters.
    """

    first: str
    second: str
    study: ProfileStudy
    tested: Bool[np.ndarray, " r"]
    shift: Float64[np.ndarray, " r"]
    shift_p: Float64[np.ndarray, " r"]
    novelty: Float64[np.ndarray, "b r"]
    novelty_p: Float64[np.ndarray, " r"]
    share: Float64[np.ndarray, "b r c"]
    share_p: Float64[np.ndarray, "r c"]
    cluster: tuple[Int64[np.ndarray, " n"], ...]  # of each brain's cells
    to_centre: tuple[Float64[np.ndarray, " n"], ...]  # distance of a cell to the centre of its cluster
    distance: tuple[Float64[np.ndarray, " n"], ...]  # of a cell to the controls

    @property
    def shift_q(self) -> np.ndarray:
        return benjamini_hochberg(self.shift_p)

    @property
    def novelty_q(self) -> np.ndarray:
        return benjamini_hochberg(self.novelty_p)

    @property
    def more_novel(self) -> Bool[np.ndarray, " r"]:
        """Regions where the second group has surely more novel cells (q < 0.05); fewer are no novelty."""
        second, first = (
            self.novelty[self.study.of(group)].mean(axis=0) for group in (self.second, self.first)
        )
        return (self.novelty_q < 0.05) & (second > first)

    @property
    def share_q(self) -> np.ndarray:
        return benjamini_hochberg(self.share_p.ravel()).reshape(self.share_p.shape)

    def table(self) -> dict[str, np.ndarray]:
        """Columns of one row a tested region and measure: `mean`, `novelty`, `cluster 0`, …"""
        at = np.flatnonzero(self.tested)
        a, b = self.study.of(self.first), self.study.of(self.second)
        measures = [("mean", np.zeros(len(at)), self.shift[at], self.shift_p[at], self.shift_q[at])]
        measures.append(
            ("novelty", *_group_means(self.novelty[:, at], a, b), self.novelty_p[at], self.novelty_q[at])
        )
        share_q = self.share_q
        for c in range(self.share.shape[2]):
            means = _group_means(self.share[:, at, c], a, b)
            measures.append((f"cluster {c}", *means, self.share_p[at, c], share_q[at, c]))
        regions = np.array(self.study.regions, np.str_)[at]
        count = len(measures)
        return {
            "region": np.tile(regions, count),
            "measure": np.repeat(np.array([measure[0] for measure in measures]), len(at)),
            "first": np.full(len(at) * count, self.first),
            "second": np.full(len(at) * count, self.second),
            "value_first": np.concatenate([measure[1] for measure in measures]),
            "value_second": np.concatenate([measure[2] for measure in measures]),
            "p_value": np.concatenate([measure[3] for measure in measures]),
            "q_value": np.concatenate([measure[4] for measure in measures]),
        }


def compare_with_reference(study: ProfileStudy, options: ProfileOptions) -> list[ProfileComparison]:
    """Every other group against the reference, the first brain's group where none is named."""
    reference = options.reference or study.groups[0]
    settings = options.model_dump(include={"clusters", "min_cells", "seed"})
    others = [group for group in study.groups if group != reference]
    return [compare_profiles(study, reference, other, **settings) for other in others]


def compare_profiles(
    study: ProfileStudy,
    first: str,
    second: str,
    *,
    clusters: int = 12,
    min_cells: int = 20,
    seed: int = 0,
) -> ProfileComparison:
    """Compare what the cells of each region look like, brains being the samples.

    Regions with fewer than `min_cells` cells in a brain of the two groups are not tested.
    """
    for group in (first, second):
        if group not in study.groups:
            raise CanvasError(f"there is no group {group}; the study has {', '.join(sorted(study.groups))}")
    a, b = study.of(first), study.of(second)
    vectors = normalised(study, first)
    regions = len(study.regions)
    counts = np.stack([np.bincount(brain.region, minlength=regions) for brain in study.brains])
    tested = (counts[a | b] >= min_cells).all(axis=0)
    if not tested.any():
        raise CanvasError(
            f"no region has {min_cells} cells in every brain; expected one at least: choose larger regions, "
            "or fewer cells with --min-cells"
        )
    cluster, to_centre = _clusters(vectors, clusters, seed)
    share = np.stack([_shares(brain.region, of_cell, regions, clusters)
                      for brain, of_cell in zip(study.brains, cluster, strict=True)])  # fmt: skip
    distance = _novelty_distances(vectors, np.flatnonzero(a), seed)
    limit = np.quantile(np.concatenate([distance[at] for at in np.flatnonzero(a)]), NOVEL)
    novelty = np.stack([_shares(brain.region, (of_cell > limit).astype(np.int64), regions, 2)[:, 1]
                        for brain, of_cell in zip(study.brains, distance, strict=True)])  # fmt: skip
    means = np.stack([_region_means(brain.region, each, regions)
                      for brain, each in zip(study.brains, vectors, strict=True)])  # fmt: skip
    shift, shift_p = _mean_shift(means, a, b, tested, seed)
    return ProfileComparison(
        first, second, study, tested, shift, shift_p,
        novelty, _logit_test(novelty, counts, a, b, tested),
        share, np.stack([_logit_test(share[:, :, c], counts, a, b, tested) for c in range(clusters)], axis=1),
        tuple(cluster), tuple(to_centre), tuple(distance),
    )  # fmt: skip


def _clusters(vectors: list[np.ndarray], count: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """k-means over as many cells of each brain; each cell's cluster, and its distance to the centre."""
    from sklearn.cluster import KMeans

    random = np.random.default_rng(seed)
    drawn = np.concatenate([_some(each, _FIT, random) for each in vectors])
    if len(drawn) < count:
        raise CanvasError(f"{len(drawn)} cells for {count} clusters; expected more cells than clusters")
    fitted = KMeans(count, n_init=3, random_state=seed).fit(drawn)
    far = [fitted.transform(each) for each in vectors]
    return [each.argmin(axis=1).astype(np.int64) for each in far], [
        each.min(axis=1).astype(np.float64) for each in far
    ]


def _novelty_distances(vectors: list[np.ndarray], controls: np.ndarray, seed: int) -> list[np.ndarray]:
    """Distance of each cell to its fifth nearest among cells of control brains other than its own.

    Every brain meets the same number of control brains: a control its fellows, any other brain all but one,
    in turn. So that distances of controls and others compare.
    """
    from sklearn.neighbors import NearestNeighbors

    random = np.random.default_rng(seed)
    drawn = {at: _some(vectors[at], _REFERENCE, random) for at in controls}
    distances = []
    for number, each in enumerate(vectors):
        left_out = number if number in drawn else controls[number % len(controls)]
        reference = np.concatenate([cells for at, cells in drawn.items() if at != left_out])
        near = NearestNeighbors(n_neighbors=min(NEIGHBOUR, len(reference))).fit(reference)
        distances.append(near.kneighbors(each)[0][:, -1].astype(np.float64))
    return distances


def _some(rows: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= most else rows[random.choice(len(rows), most, replace=False)]


def _shares(region: np.ndarray, kind: np.ndarray, regions: int, kinds: int) -> np.ndarray:
    """Share of each kind among a region's cells (r, kinds), NaN for a region without cells."""
    counts = np.bincount(region * kinds + kind, minlength=regions * kinds).reshape(regions, kinds)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def _region_means(region: np.ndarray, vectors: np.ndarray, regions: int) -> np.ndarray:
    """Mean vector of each region (r, k), NaN for a region without cells."""
    sums = np.zeros((regions, vectors.shape[1]))
    np.add.at(sums, region, vectors)
    counts = np.bincount(region, minlength=regions)[:, None]
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _logit_test(
    share: np.ndarray, counts: np.ndarray, a: np.ndarray, b: np.ndarray, tested: np.ndarray
) -> Float64[np.ndarray, " r"]:
    """p-values of Welch's t-test of logits, half a cell added to either side."""
    hits = np.nan_to_num(share) * counts
    logit = np.log(hits + 0.5) - np.log(counts - hits + 0.5)
    return np.where(tested, welch(logit[a], logit[b])["p"], np.nan)


def _mean_shift(
    means: np.ndarray, a: np.ndarray, b: np.ndarray, tested: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distance between the groups' mean embeddings (r,), and its p-value over permutations of brains."""
    at = np.flatnonzero(a | b)
    own, n = np.flatnonzero(a[at]), int(a.sum())
    values = means[at][:, tested]

    def distance(chosen: np.ndarray) -> np.ndarray:
        rest = np.setdiff1d(np.arange(len(at)), chosen)
        return np.linalg.norm(values[rest].mean(axis=0) - values[chosen].mean(axis=0), axis=1)

    if comb(len(at), n) <= _PERMUTATIONS:
        draws = [np.array(draw) for draw in combinations(range(len(at)), n)]
    else:
        random = np.random.default_rng(seed)
        draws = [own, *(random.permutation(len(at))[:n] for _ in range(_PERMUTATIONS))]
    observed = distance(own)
    reached = np.mean([distance(draw) >= observed * (1 - 1e-9) for draw in draws], axis=0)
    shift, p = np.full(len(tested), np.nan), np.full(len(tested), np.nan)
    shift[tested], p[tested] = observed, reached
    return shift, p


def _group_means(values: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values[a].mean(axis=0), values[b].mean(axis=0)
