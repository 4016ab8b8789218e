"""Which clicks teach most: candidates of unseen domains, simulated clicks, 5 % of them wrong.

`python -m tests.benchmarks.refinement.bench_review [--cache DIR] [--seeds N] [--out report.json]`: four cubes
and four randomised phantoms; candidates of `detector-phantoms-1` at a quarter of its threshold, features of
`base-2`, shape and the detector's score. From 25 to 200 clicks in each order: F1 against all true cells, the
count among the candidates and its interval, beside the detector at its own threshold and at the one that is
learned from the clicks (`detector_f1`, as of `review --adapt`). `--resnet random
uncertain` trains a 3D ResNet on the first 100 clicks of these orders too (3 CPU minutes each).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.files.shipped import find, shipped
from canvas_fm.heads.features.shape import shape_of_points
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.review.audit.clicked_count import clicked_count, random_clicks
from canvas_fm.heads.review.learn_from_clicks import learn_from_clicks, standardised
from canvas_fm.heads.review.learn_threshold import learn_threshold
from canvas_fm.heads.review.order import (
    RANDOM_EVERY,
    clusters_of,
    diverse_order,
    first_order,
    random_order,
    uncertain_order,
)
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.embed.embed import embed
from canvas_fm.models.load_model import load
from canvas_fm.pipeline.domain_volumes import Domain, labelled_domains, phantom_domains
from tests.benchmarks.refinement.clicked_resnet import resnet_p_cell
from tests.support.real_data import REAL_DATA

CUBES = ("delivr_microglia/2433", "delivr_microglia/7095", "delivr_cFos/695", "delivr_cFos/1008")
PHANTOMS, FEWEST = 4, 60
STEP, MOST, RESNET_CLICKS, QUARTER = 25, 200, 100, 0.25
STRATEGIES = ("random", "uncertain", "diverse", "uncertain from the threshold on")


def domains() -> list[Domain]:
    """The cubes, and the first phantoms with enough cells, two of a kind at most."""
    paths = [REAL_DATA / name for name in CUBES if (REAL_DATA / name).is_dir()]
    real = labelled_domains(
        [path / "raw.zarr" for path in paths], [path / "centroids.csv" for path in paths],
        [path / "meta.json" for path in paths], {"cFos": 8.0, "microglia": 12.0},
    )  # fmt: skip
    phantoms: list[Domain] = []
    for domain in phantom_domains(40):
        alike = sum(domain.group == other.group for other in phantoms)
        if len(phantoms) < PHANTOMS and alike < 2 and len(domain.open()[1]) >= FEWEST:
            phantoms.append(domain)
    return [*real, *phantoms]


def features(domain: Domain, cache: Path) -> dict[str, np.ndarray]:
    """Labels, scores and features of a domain's candidates, kept in the cache."""
    path = cache / f"{domain.name.replace(' ', '_')}.npz"
    if not path.exists():
        detector = load(shipped("older model")["detector-phantoms-1"], kind="detector")
        encoder = load(find("model", "base-2"), kind="encoder")
        volume, cells, boxes, _ = domain.open()
        threshold = detector.config.threshold
        other = any(
            abs(a - b) > 0.05 * b for a, b in zip(volume.voxel_um, detector.config.voxel_um, strict=True)
        )
        found = detect(
            detector, volume, threshold=QUARTER * threshold, resample=other, device="cpu", show=False
        )
        brain = Candidates.of(
            volume, found, Points(cells), labels=None, tolerance_um=domain.tolerance_um, within=boxes,
            name=domain.name,
        )  # fmt: skip
        keep = brain.label >= 0
        other = any(
            abs(a - b) > 0.05 * b for a, b in zip(volume.voxel_um, encoder.config.voxel_um, strict=True)
        )
        zyx = brain.zyx[keep]
        np.savez_compressed(
            path,
            zyx=zyx,
            label=brain.label[keep],
            missed=brain.missed or 0,
            score=found.columns["score"][keep].astype(float),
            emb=embed(encoder, volume, zyx, resample=other, device="cpu", show=False),
            shape=shape_of_points(volume, zyx),
            threshold=threshold,
        )
    with np.load(path) as arrays:
        return dict(arrays)


def simulate(
    of: dict[str, np.ndarray], x: np.ndarray, groups: np.ndarray, strategy: str, seed: int, wrong: float
) -> Iterator[tuple[dict[str, float], np.ndarray]]:
    """Figures after each 25 clicks of one strategy, with the labels that were clicked so far."""
    truth, score, threshold = of["label"].astype(np.int64), of["score"], float(of["threshold"])
    permutation = random_order(len(truth), seed)
    random = np.random.default_rng((seed, 0xBAD))
    label = np.full(len(truth), -2)
    p, learned = np.clip(score, 1e-4, 1 - 1e-4), None
    own = detector = threshold
    for clicks in range(STEP, min(MOST, len(truth)) + 1, STEP):
        ranked = permutation
        if strategy != "random":
            ranked = uncertain_order(p, threshold, seed)
            if learned is None and "threshold" not in strategy:
                ranked = first_order(score, len(score), seed)
        if strategy == "diverse":
            ranked = diverse_order(groups, ranked, seed)
        streams = iter(ranked.tolist()), iter(permutation.tolist())
        for number in range(clicks - STEP, clicks):
            at_random = number % RANDOM_EVERY == RANDOM_EVERY - 1
            row = next(row for row in streams[at_random] if label[row] == -2)
            label[row] = truth[row] if random.random() >= wrong else 1 - truth[row]
        sample = random_clicks(permutation, label)
        learned = learn_from_clicks(x, label, sample, score, seed=seed, curve=False) or learned
        if learned is not None:
            p, threshold = learned.p_cell, 0.5
            detector = learn_threshold(
                x, label, sample, score, p, before=own, lowest=QUARTER * own, seed=seed, curve=False
            ).threshold
        kept = p >= threshold
        count = clicked_count(label, sample, None if learned is None else p)
        cells = int(truth.sum())
        yield (
            {
                "clicks": clicks,
                "f1": f1(kept, truth, int(of["missed"])),
                "detector_f1": f1(score >= detector, truth, int(of["missed"])),
                "kept_error": abs(int(kept.sum()) / cells - 1),
                "sum_p_error": abs(p.sum() / cells - 1) if learned is not None else np.nan,
                "count_error": np.nan if count is None else abs(count.value / cells - 1),
                "half_width": np.nan if count is None else (count.high - count.low) / 2 / cells,
                "held": np.nan if count is None else float(count.low <= cells <= count.high),
            },
            label.copy(),
        )


def with_resnet(
    domain: Domain, of: dict[str, np.ndarray], x: np.ndarray, groups: np.ndarray, strategy: str, wrong: float
) -> dict[str, float]:
    """F1, and error of the number of kept candidates, of a ResNet from the first 100 clicks (seed 0)."""
    for row, label in simulate(of, x, groups, strategy, 0, wrong):
        if row["clicks"] == RESNET_CLICKS or len(of["label"]) < row["clicks"] + STEP:
            clicked = set(label[label >= 0].tolist())
            if len(clicked) < 2:
                return {"clicks": row["clicks"], "f1": np.nan, "kept_error": np.nan}
            kept = resnet_p_cell(domain.open()[0], of["zyx"], label, 0) >= 0.5
            error = abs(int(kept.sum()) / int(of["label"].sum()) - 1)
            return {
                "clicks": row["clicks"],
                "f1": f1(kept, of["label"], int(of["missed"])),
                "kept_error": error,
            }
    raise AssertionError(f"{domain.name} has too few candidates")


def f1(kept: np.ndarray, truth: np.ndarray, missed: int) -> float:
    """F1 of kept candidates against all true cells, those without a candidate too."""
    both = int(kept.sum()) + int(truth.sum()) + missed
    return 2 * int((kept & (truth == 1)).sum()) / both


def main() -> None:
    """Print a line for each domain, strategy and number of clicks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("review_features"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--wrong", type=float, default=0.05, help="share of wrong clicks")
    parser.add_argument("--only", nargs="*", help="names of domains")
    parser.add_argument(
        "--resnet", nargs="*", default=[], choices=STRATEGIES, help="orders to train a ResNet by"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_known_args()[0]
    args.cache.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    for domain in domains():
        if args.only and domain.name not in args.only:
            continue
        of = features(domain, args.cache)
        x = standardised(
            np.concatenate([of["emb"], of["shape"], of["score"][:, None].astype(np.float32)], axis=1)
        )
        groups = clusters_of(of["emb"])
        kept, cells = of["score"] >= of["threshold"], int(of["label"].sum())
        before = {
            "candidates": len(of["label"]),
            "cells": cells,
            "f1": f1(kept, of["label"], int(of["missed"])),
            "count_error": abs(int(kept.sum()) / cells - 1),
        }
        print(domain.name, domain.group, {key: round(value, 3) for key, value in before.items()}, flush=True)
        report[domain.name] = {"group": domain.group, "before": before, "after": {}}
        for strategy in STRATEGIES:
            figures: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
            for seed in range(args.seeds):
                for row, _ in simulate(of, x, groups, strategy, seed, args.wrong):
                    for key, value in row.items():
                        figures[int(row["clicks"])][key].append(value)
            means = {
                clicks: {key: float(np.mean(values)) for key, values in row.items()}
                for clicks, row in figures.items()
            }
            report[domain.name]["after"][strategy] = means
            for clicks in (25, 50, 100, 200):
                if clicks in means:
                    shown = {key: round(value, 3) for key, value in means[clicks].items() if key != "clicks"}
                    print(f"  {strategy}, {clicks} clicks: {shown}", flush=True)
        for strategy in args.resnet:
            row = with_resnet(domain, of, x, groups, strategy, args.wrong)
            report[domain.name]["after"][f"ResNet, {strategy}"] = row
            print(
                f"  ResNet, {strategy}: { {key: round(value, 3) for key, value in row.items()} }", flush=True
            )
        if args.out is not None:
            args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
