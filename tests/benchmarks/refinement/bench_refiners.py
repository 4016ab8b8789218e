"""Shipped refiners beside the candidates' own score and boosted trees on shape features, on held-out domains.

`python -m tests.benchmarks refiners --phantoms 50 --out rows.jsonl`: candidates of a Laplacian of a Gaussian,
of a phantom at most 1,500; cells without a candidate count as missed. Of labelled cubes, where the data are,
each is scored by trees and thresholds of the others, phantoms by trees of all cubes. Phantoms are of seeds 0
to 999; with `--final-test` of 1000 to 1099, which nothing is chosen on. An interrupted run goes on from its
rows, and from the cubes in `--cache`. `--refiner refiner-all` is one refiner in place of each
marker's own; each marker still has a threshold of its own on cubes, on phantoms it is the refiner's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from canvas_fm.data.points.points import Points
from canvas_fm.files.shipped import find
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.tiles.tiled_detection import run
from canvas_fm.pipeline.domain_volumes import Domain, phantom_domains
from canvas_fm.pipeline.score_domains import laplacian_job
from tests.benchmarks.detection.domain_candidates import domains
from tests.benchmarks.refinement.shape_trees import (
    Carried,
    Scored,
    carried_trees,
    cube,
    held_out_f1,
    scored,
)

MOST = 1500  # candidates of a phantom, the strongest
REFINERS = {"phantom somata": "refiner-microglia", "phantom nuclei": "refiner-cfos"}
OWN_THRESHOLD = {"phantom somata": 0.0025, "phantom nuclei": 0.0028}  # best over phantoms of seeds 0 to 999
CUBES = {"phantom somata": "microglia", "phantom nuclei": "cFos"}


def score(domain: Domain, refiner: Refiner, trees: Carried | None) -> dict[str, Any]:
    """F1 on one phantom of a refiner, the candidates' own score and the cubes' trees, fixed and best."""
    volume, cells, boxes, _ = domain.open()
    row: dict[str, Any] = {"name": domain.name, "group": domain.group, "cells": len(cells)}
    found = run(laplacian_job(volume, domain.tolerance_um), show=False)
    own = found.columns["score"].astype(np.float64)
    strongest = np.argsort(-own)[:MOST]
    found, own = Points(found.zyx[strongest], {"score": own[strongest]}), own[strongest]
    if not len(found) or not len(cells):
        nothing = dict.fromkeys(("f1", "best", "own", "own_best"), 0.0)
        return row | {"candidates": len(found)} | nothing | ({} if trees is None else {"trees": 0.0})
    labelled = Candidates.of(
        volume, found, Points(cells), labels=None, tolerance_um=domain.tolerance_um, within=boxes,
        name=domain.name,
    )  # fmt: skip
    brain = scored(domain, labelled, own, refiner)
    p_cell = refiner.calibration_(brain.logit)
    return row | {
        "candidates": len(found), "missed": brain.missed, "expected_cells": float(p_cell.sum()),
        "f1": brain.f1(p_cell, refiner.threshold_), "best": brain.best_f1(p_cell),
        "own": brain.f1(brain.own, OWN_THRESHOLD[domain.group]), "own_best": brain.best_f1(brain.own),
        "rank_correlation": float(spearmanr(p_cell, brain.own).statistic) if len(p_cell) > 2 else 1.0,
        **({} if trees is None else {"trees": brain.f1(trees.score(brain), trees.threshold)}),
    }  # fmt: skip


def labelled_cubes(refiners: dict[str, Refiner], cache: Path | None) -> dict[str, list[Scored]]:
    """The labelled cubes by the group of phantoms that are like them; empty without the data."""
    refiner_of = {CUBES[group]: refiner for group, refiner in refiners.items()}
    cubes = [cube(domain, refiner_of[domain.group], cache) for domain in domains(0)]
    return {group: [brain for brain in cubes if brain.group == CUBES[group]] for group in refiners}


def show(group: str, f1: dict[str, Sequence[float]]) -> None:
    """Print mean, 95 % interval over domains and worst decile by method, and the refiner's lead."""
    for method, values in f1.items():
        mean, low, high = _interval(np.asarray(values))
        print(f"refiners, {group} ({len(values)}), {method}: {mean:.3f} [{low:.3f}, {high:.3f}], "
              f"worst decile {np.quantile(values, 0.1):.3f}, worst {min(values):.3f}")  # fmt: skip
    for method in f1.keys() & {"own", "trees"}:
        lead = np.asarray(f1["refiner"]) - np.asarray(f1[method])
        mean, low, high = _interval(lead)
        print(f"refiners, {group}, refiner less {method}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], "
              f"ahead on {(lead > 0).sum()} of {len(lead)}")  # fmt: skip


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    means = np.random.default_rng(0).choice(values, (4000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def main(arguments: Sequence[str] = ()) -> None:
    """Print F1 by group and method, and of cubes each one's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=40)
    parser.add_argument("--final-test", action="store_true", help="phantoms of seeds 1000 to 1099")
    parser.add_argument(
        "--refiner", help="in place of each marker's own; then give another --out and --cache"
    )
    parser.add_argument("--out", type=Path, help="file of rows, to go on from")
    parser.add_argument("--cache", type=Path, help="folder of the cubes' features, to go on from")
    args = parser.parse_args(arguments)
    known = args.out.read_text().splitlines() if args.out is not None and args.out.exists() else []
    rows = {row["name"]: row for row in map(json.loads, known)}
    refiners = {group: Refiner.load(find("model", args.refiner or name)) for group, name in REFINERS.items()}
    cubes = labelled_cubes(refiners, args.cache)
    for group, brains in cubes.items():
        if brains:
            by_method = held_out_f1(brains)
            show(CUBES[group], {method: list(of.values()) for method, of in by_method.items()})
            for brain in brains:
                each = ", ".join(f"{method} {of[brain.name]:.3f}" for method, of in by_method.items())
                print(f"refiners, {brain.group} {brain.name}: {each}")
    trees = {group: carried_trees(brains) if brains else None for group, brains in cubes.items()}
    phantoms = phantom_domains(args.phantoms, test=args.final_test)
    for domain in phantoms:
        if domain.name in rows:
            continue
        rows[domain.name] = score(domain, refiners[domain.group], trees[domain.group])
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(rows[domain.name]) + "\n")
    names = {"f1": "refiner", "own": "own", "trees": "trees", "best": "refiner, best threshold",
             "own_best": "own, best threshold"}  # fmt: skip
    for group in refiners:
        some = [rows[domain.name] for domain in phantoms if domain.group == group]
        if some:
            scored = {key: name for key, name in names.items() if all(key in row for row in some)}
            show(group, {name: [row[key] for row in some] for key, name in scored.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
