"""Boosted trees on shape features of the labelled cubes, beside a refiner and the candidates' own order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.window import DEFAULT_RULE
from canvas_fm.heads.features.shape import shape_of_points
from canvas_fm.heads.labels.candidates import CELL, SKIP, Candidates
from canvas_fm.heads.refine.apply.apply import extractor_of, models_of
from canvas_fm.heads.refine.head.boosted_trees import grow_trees
from canvas_fm.heads.refine.head.threshold import choose_threshold
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.pipeline.domain_volumes import Domain

OTHERS = 900  # candidates of a cube that are no cells, drawn for the trees; scored are all
REFINED_AT_UM = (6.0, 1.62, 1.62)
NEVER = ("7095",)  # nothing is fitted on it, and no threshold chosen

Score = Callable[["Scored"], Float64[np.ndarray, " n"]]


@dataclass(frozen=True)
class Scored:
    """Labelled candidates of a brain: own score, logits of a refiner, shape features; cells without one."""

    name: str
    group: str
    is_cell: Bool[np.ndarray, " n"]
    missed: int
    own: Float64[np.ndarray, " n"]
    logit: Float64[np.ndarray, " n"]
    shape: Float32[np.ndarray, "n k"]
    region: Int64[np.ndarray, " n"]

    def by_region(self) -> list[Scored]:
        """The labelled octants as brains of their own; cells without a candidate are left out."""
        return [
            Scored(f"{self.name}, {number}", self.group, self.is_cell[rows], 0, self.own[rows],
                   self.logit[rows], self.shape[rows], self.region[rows])
            for number in np.unique(self.region)
            if self.is_cell[rows := self.region == number].any()
        ]  # fmt: skip

    def f1(self, score: Float64[np.ndarray, " n"], threshold: float) -> float:
        keep = score >= threshold
        found = 2 * (keep & self.is_cell).sum()
        return float(found / max(keep.sum() + self.is_cell.sum() + self.missed, 1))

    def best_f1(self, score: Float64[np.ndarray, " n"]) -> float:
        found = np.cumsum(self.is_cell[np.argsort(-score)])
        kept = np.arange(1, len(found) + 1)
        return float((2 * found / (kept + self.is_cell.sum() + self.missed)).max(initial=0.0))


def scored(domain: Domain, brain: Candidates, own: Float64[np.ndarray, " n"], refiner: Refiner) -> Scored:
    """What every method looks at, of the labelled candidates of a domain."""
    kept = brain.label != SKIP
    volume, zyx = brain.volume, brain.zyx[kept]
    other = any(abs(a - b) > 0.05 * b for a, b in zip(volume.voxel_um, REFINED_AT_UM, strict=True))
    extractor = extractor_of(refiner, **models_of(refiner, None, None), device="cpu", resample=other)
    logit = refiner.logits(extractor.features(volume, zyx, show=False)).astype(np.float64)
    shape = shape_of_points(volume, zyx, rule=DEFAULT_RULE)
    is_cell = (brain.label == CELL)[kept]
    return Scored(domain.name, domain.group, is_cell, brain.missed or 0, own[kept], logit, shape,
                  brain.region[kept])  # fmt: skip


def cube(domain: Domain, refiner: Refiner, cache: Path | None) -> Scored:
    """A labelled cube with the candidates that lie beside it, those of a Laplacian of a Gaussian."""
    path = None if cache is None else cache / f"{domain.name}.npz"
    if path is not None and path.is_file():
        with np.load(path) as kept:
            arrays = {key: kept[key] for key in ("is_cell", "own", "logit", "shape", "region")}
            return Scored(domain.name, domain.group, missed=int(kept["missed"]), **arrays)
    assert domain.path is not None
    volume, cells, boxes, _ = domain.open()
    found = Points.read(domain.path.parent / "candidates.csv")
    brain = Candidates.of(volume, found, Points(cells), tolerance_um=domain.tolerance_um, within=boxes)
    row = scored(domain, brain, np.asarray(found.columns["log_score"], np.float64), refiner)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, is_cell=row.is_cell, missed=row.missed, own=row.own, logit=row.logit,
                            shape=row.shape, region=row.region)  # fmt: skip
    return row


def own_score(brain: Scored) -> Float64[np.ndarray, " n"]:
    return brain.own


def refined(brain: Scored) -> Float64[np.ndarray, " n"]:
    return brain.logit


def trees_of(cubes: Sequence[Scored]) -> Score:
    """The product's boosted trees, fitted on the shape features of these cubes."""
    x, is_cell = [], []
    for brain in cubes:
        others = np.flatnonzero(~brain.is_cell)
        drawn = np.random.default_rng(0).choice(others, min(OTHERS, len(others)), replace=False)
        rows = np.sort(np.concatenate([np.flatnonzero(brain.is_cell), drawn]))
        x.append(brain.shape[rows])
        is_cell.append(brain.is_cell[rows])
    net = grow_trees(np.concatenate(x), np.concatenate(is_cell), balanced=False, seed=0)

    def score(brain: Scored) -> Float64[np.ndarray, " n"]:
        with torch.inference_mode():
            return net(torch.from_numpy(brain.shape)).double().numpy()

    return score


def threshold_of(brains: Sequence[Scored], scores: Sequence[Float64[np.ndarray, " n"]]) -> float:
    """The threshold of the highest mean F1 over brains, as a refiner of two scores chooses its own."""
    groups = np.repeat([brain.name for brain in brains], [len(brain.is_cell) for brain in brains])
    is_cell = np.concatenate([brain.is_cell for brain in brains])
    missed = {brain.name: brain.missed for brain in brains}
    return choose_threshold(np.concatenate(scores)[None], is_cell, groups, missed).threshold


def held_out_f1(cubes: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """F1 of each cube by method, fitted and with a threshold chosen on the other cubes alone.

    The trees of a threshold are without the scored cube too: of each pair of cubes some are fitted without
    both. The refiner has to be one whose logits were not fitted on any cube: a sum of two scores.
    """
    fits: dict[frozenset[str], Score] = {}

    def without(*names: str) -> Score:
        left = [brain for brain in cubes if brain.name not in (*names, *NEVER)]
        key = frozenset(brain.name for brain in left)
        if key not in fits:
            fits[key] = trees_of(left)
        return fits[key]

    f1: dict[str, dict[str, float]] = {"refiner": {}, "own": {}, "trees": {}}
    for brain in cubes:
        rest = [other for other in cubes if other.name not in (brain.name, *NEVER)]
        for method, score in (("refiner", refined), ("own", own_score)):
            threshold = threshold_of(rest, [score(other) for other in rest])
            f1[method][brain.name] = brain.f1(score(brain), threshold)
        if len(rest) > 1:
            threshold = threshold_of(rest, [without(brain.name, other.name)(other) for other in rest])
        else:  # of one cube the octants are left out in turn
            threshold = _held_out(rest[0].by_region())
        f1["trees"][brain.name] = brain.f1(without(brain.name)(brain), threshold)
    return f1


class Carried(NamedTuple):
    """A score with its fixed threshold."""

    score: Score
    threshold: float


def carried_trees(cubes: Sequence[Scored]) -> Carried:
    """Trees of all cubes, with the threshold of trees that have not seen the cube: for other domains."""
    seen = [brain for brain in cubes if brain.name not in NEVER]
    return Carried(trees_of(seen), _held_out(seen))


def _held_out(brains: Sequence[Scored]) -> float:
    """The threshold of trees for brains that they have not seen."""
    scores = [trees_of([other for other in brains if other is not brain])(brain) for brain in brains]
    return threshold_of(brains, scores)
