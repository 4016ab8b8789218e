"""How often 90 % intervals of cell counts hold: detect, refine, count, each domain by what never saw it.

`python -m tests.benchmarks counts --phantoms 36 --out report.json`: labelled cubes (where the data
are) and randomised phantoms; candidates are those of the older `detector-phantoms-1`, which saw none of them,
cut at its own threshold. For each domain a refiner is fitted on the others of its group, and the recall taken
from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.files.shipped import shipped
from canvas_fm.heads.features.feature_set import DETECTOR_LOGIT, FeatureSet, stack
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.refine.counts.candidate_recall import recall_on_new_brain
from canvas_fm.heads.refine.counts.count_interval import expected_count
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.load_model import Detector, load
from canvas_fm.pipeline.domain_volumes import Domain
from tests.benchmarks.detection.domain_candidates import candidates_of, domains

FEWEST = 20  # cells of a domain that says something


def candidates(domain: Domain, detector: Detector, cache: Path | None) -> tuple[Candidates, FeatureSet]:
    """What the detector finds at its own threshold, labelled, and its logit at each."""
    volume, cells, boxes, _ = domain.open()
    every = candidates_of(domain, detector, cache)
    keep = every.columns["score"] >= np.float32(detector.config.threshold)
    found = Points(every.zyx[keep], {"score": every.columns["score"][keep]})
    brain = Candidates.of(
        volume, found, Points(cells), labels=None, tolerance_um=domain.tolerance_um, within=boxes,
        name=domain.name,
    )  # fmt: skip
    score = np.clip(found.columns["score"].astype(np.float64), 1e-6, 1 - 1e-6)
    logit = np.log(score / (1 - score)).astype(np.float32)[:, None]
    # At a detection the detector's logit is its score's: a test of the extractor holds that.
    return brain, FeatureSet(logit, {DETECTOR_LOGIT: slice(0, 1)}, np.full(len(found), domain.name))


def score_held_out(
    held: int, brains: Sequence[Candidates], features: Sequence[FeatureSet]
) -> list[dict[str, Any]]:
    """Counts of a domain and of its labelled boxes, by a refiner and a recall of the others."""
    others = [k for k in range(len(brains)) if k != held and (brains[k].label == 1).any()]
    refiner = Refiner(DETECTOR_LOGIT, C=1.0, folds=5)
    regions = np.concatenate([brains[k].region for k in others])
    label = np.concatenate([brains[k].label for k in others])
    missed = {brains[k].name: brains[k].missed or 0 for k in others}
    refiner.fit(stack([features[k] for k in others]), label, regions=regions, missed=missed)
    found = [int((brains[k].label == 1).sum()) for k in others]
    cells = [n + missed[brains[k].name] for n, k in zip(found, others, strict=True)]
    recall = recall_on_new_brain(found, cells)
    brain = brains[held]
    p = refiner.predict_proba(features[held])[:, 1] if len(brain) else np.empty(0)
    inside = brain.region >= 0
    rows = [_row(brain, "whole", p[inside], brain.where, refiner, recall)]
    if len(brain.where) > 1:
        rows += [
            _row(brain, f"box {n}", p[brain.region == n], box[None], refiner, recall)
            for n, box in enumerate(brain.where)
        ]
    return rows


def _row(brain, what, p, boxes, refiner, recall) -> dict[str, Any]:
    from canvas_fm.data.points.boxes import inside_boxes

    true = int(inside_boxes(brain.truth_zyx, boxes).sum())
    before = expected_count(p, refiner.count_spread_._replace(log_odds=0.0))
    count = expected_count(p, refiner.count_spread_, recall)
    return {
        "domain": brain.name, "part": what, "true": true, "count": round(count.value, 1),
        "low": round(count.low, 1), "high": round(count.high, 1), "holds": count.low <= true <= count.high,
        "width": (count.high - count.low) / max(true, 1), "before": before.low <= true <= before.high,
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of intervals that hold (and of those of candidates alone), and their mean relative width."""
    told = [row for row in rows if row["true"] >= FEWEST]
    return {
        "intervals": len(told),
        "hold": float(np.mean([row["holds"] for row in told])),
        "hold_of_candidates_alone": float(np.mean([row["before"] for row in told])),
        "mean_width": float(np.mean([row["width"] for row in told])),
        "median_width": float(np.median([row["width"] for row in told])),
    }


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=36)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path, help="folder of candidates, to go on from or to share")
    args = parser.parse_args(arguments)
    detector = load(shipped("older model")["detector-phantoms-1"], kind="detector", device="cpu")
    groups: dict[str, list[tuple[Candidates, FeatureSet]]] = {}
    for domain in domains(args.phantoms):
        brain, features = candidates(domain, detector, args.cache)
        print(domain.name, domain.group, len(brain), int((brain.label == 1).sum()), brain.missed, flush=True)
        groups.setdefault(domain.group, []).append((brain, features))
    rows = {
        group: [
            row
            for held in range(len(parts))
            for row in score_held_out(held, *map(list, zip(*parts, strict=True)))
        ]
        for group, parts in groups.items()
    }
    by_part = {f"{group}, {what}": [r for r in some if (r["part"] == "whole") == (what == "whole")]
             for group, some in rows.items() for what in ("whole", "boxes")}  # fmt: skip
    every = [row for some in rows.values() for row in some]
    report = {name: summary(some) for name, some in {**by_part, "all": every}.items()
              if any(row["true"] >= FEWEST for row in some)}  # fmt: skip
    for name, one in report.items():
        print(name, {key: round(value, 3) for key, value in one.items()})
    if args.out is not None:
        args.out.write_text(json.dumps({"summary": report, "rows": rows}, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
