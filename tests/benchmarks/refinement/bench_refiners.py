"""Shipped refiners on randomised phantoms, beside the candidates' own score at a fixed threshold.

`python -m tests.benchmarks refiners --phantoms 50 --out rows.jsonl`: candidates of the Laplacian of a
Gaussian over the median, at most 1,500 a phantom; cells without a candidate count as missed. Phantoms are
of seeds 0 to 999; with `--final-test` of 1000 to 1099, which nothing is chosen on. An interrupted run goes on
from its rows.
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
from canvas_fm.heads.labels.candidates import CELL, SKIP, Candidates
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.tiles.tiled_detection import run
from canvas_fm.pipeline.domain_volumes import Domain, phantom_domains
from canvas_fm.pipeline.score_domains import laplacian_job

MOST = 1500  # candidates of a phantom, the strongest
REFINERS = {"phantom somata": "refiner-microglia", "phantom nuclei": "refiner-cfos"}
OWN_THRESHOLD = {"phantom somata": 0.0025, "phantom nuclei": 0.0028}  # best over phantoms of seeds 0 to 999
REFINED_AT_UM = (6.0, 1.62, 1.62)


def score(domain: Domain, refiner: Refiner) -> dict[str, Any]:
    """F1 of a refiner and of the candidates' own score on one phantom, at fixed and at best thresholds."""
    volume, cells, boxes, _ = domain.open()
    row = {"name": domain.name, "group": domain.group, "cells": len(cells)}
    found = run(laplacian_job(volume, domain.tolerance_um), show=False)
    own = found.columns["score"].astype(np.float64)
    strongest = np.argsort(-own)[:MOST]
    found, own = Points(found.zyx[strongest], {"score": own[strongest]}), own[strongest]
    if not len(found) or not len(cells):
        return row | {"candidates": len(found), "f1": 0.0, "best": 0.0, "own": 0.0, "own_best": 0.0}
    brain = Candidates.of(
        volume, found, Points(cells), labels=None, tolerance_um=domain.tolerance_um, within=boxes,
        name=domain.name,
    )  # fmt: skip
    other = any(abs(a - b) > 0.05 * b for a, b in zip(volume.voxel_um, REFINED_AT_UM, strict=True))
    p_cell = refine(refiner, volume, found, resample=other, show=False).columns["p_cell"].astype(np.float64)
    kept, missed = brain.label != SKIP, brain.missed or 0
    is_cell = (brain.label == CELL)[kept]
    p_cell, own = p_cell[kept], own[kept]
    return row | {
        "candidates": len(found), "missed": missed, "expected_cells": float(p_cell.sum()),
        "f1": _f1(p_cell >= refiner.threshold_, is_cell, missed), "best": _best_f1(p_cell, is_cell, missed),
        "own": _f1(own >= OWN_THRESHOLD[domain.group], is_cell, missed),
        "own_best": _best_f1(own, is_cell, missed),
        "rank_correlation": float(spearmanr(p_cell, own).statistic) if len(own) > 2 else 1.0,
    }  # fmt: skip


def _f1(keep: np.ndarray, is_cell: np.ndarray, missed: int) -> float:
    return float(2 * (keep & is_cell).sum() / max(keep.sum() + is_cell.sum() + missed, 1))


def _best_f1(score: np.ndarray, is_cell: np.ndarray, missed: int) -> float:
    tp = np.cumsum(is_cell[np.argsort(-score)])
    return float((2 * tp / (np.arange(1, len(tp) + 1) + is_cell.sum() + missed)).max(initial=0.0))


def main(arguments: Sequence[str] = ()) -> None:
    """Print for each kind of cell mean, 95 % interval over domains and worst decile of F1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=40)
    parser.add_argument("--final-test", action="store_true", help="phantoms of seeds 1000 to 1099")
    parser.add_argument("--out", type=Path, help="file of rows, to go on from")
    args = parser.parse_args(arguments)
    known = args.out.read_text().splitlines() if args.out is not None and args.out.exists() else []
    rows = {row["name"]: row for row in map(json.loads, known)}
    refiners = {group: Refiner.load(find("model", name)) for group, name in REFINERS.items()}
    domains = phantom_domains(args.phantoms, test=args.final_test)
    for domain in domains:
        if domain.name in rows:
            continue
        rows[domain.name] = score(domain, refiners[domain.group])
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(rows[domain.name]) + "\n")
    for group in refiners:
        some = [rows[domain.name] for domain in domains if domain.group == group]
        for key in ("f1", "own", "best", "own_best") if some else ():
            values = np.array([row[key] for row in some])
            means = np.random.default_rng(0).choice(values, (4000, len(values))).mean(axis=1)
            low, high = np.quantile(means, [0.025, 0.975])
            print(f"refiners, {group} ({len(values)}), {key}: {values.mean():.3f} [{low:.3f}, {high:.3f}], "
                  f"worst decile {np.quantile(values, 0.1):.3f}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
