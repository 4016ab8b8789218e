"""How often 90 % intervals of cell counts hold: detect, refine, count, each domain by counts of the others.

`python -m tests.benchmarks counts --phantoms 120 --folds F1 F2 F3 --out report.json`: labelled cubes (where
the data are) and randomised phantoms; what ships, by records made of the other domains. F1 to F3 are the fold
detectors of `detector-microglia`, trained as its card says. `--final-test` scores phantoms of seeds 1000 to
1099, once, by the records of `--records report.json`. The report's `records` are what
`canvas_fm/weights/_counts.json` holds; they are written beside it too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.boxes import box_of
from canvas_fm.data.points.points import P_CELL, Points
from canvas_fm.files.shipped import find
from canvas_fm.heads.refine.counts.count_interval import Count, expected_count
from canvas_fm.heads.refine.counts.measured_count import NOT_REFINED, CountRecord, measured_count
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.load_model import Detector, load
from canvas_fm.pipeline.domain_volumes import Domain, phantom_domains
from tests.benchmarks.detection.domain_candidates import domains
from tests.benchmarks.refinement.held_out_counts import Brain, fold_of, record_of

FEWEST = 20  # cells of a count that says something
REFINERS = {"microglia": "refiner-microglia", "phantom somata": "refiner-microglia",
            "cFos": "refiner-cfos", "phantom nuclei": "refiner-cfos"}  # fmt: skip
BY_FOLDS = "detector-microglia"


@dataclass(frozen=True)
class Pair:
    """A detector, its refiner or none, its labelled brains and the other volumes of its record."""

    detector: str
    refiner: str | None
    brains: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.detector}, {self.refiner or 'not refined'}"


C_FOS = (("cFos",), ("phantom nuclei",))
MICROGLIA = (("microglia",), ("phantom somata",))
PAIRS = (
    Pair("detector-cfos", "refiner-cfos", *C_FOS),
    Pair("detector-cfos", None, *C_FOS),
    Pair("detector-microglia", "refiner-microglia", *MICROGLIA),
    Pair("detector-microglia", None, *MICROGLIA),
    Pair("detector-phantoms", "refiner-cfos", *C_FOS),
    Pair("detector-phantoms", "refiner-microglia", *MICROGLIA),
    Pair("detector-phantoms", None, (), ("cFos", "microglia", "phantom nuclei", "phantom somata")),
)


def rows_of(brain: Brain, detector: Detector, record: CountRecord, refined: bool) -> list[dict[str, Any]]:
    """Counts of what is labelled, and of its parts; those of the domain's whole volume give the ratio."""
    meta = brain.points.meta | {"detector_sha256": detector.sha256, "threshold": f"{record.threshold:g}"}
    points = Points(brain.points.zyx, brain.points.columns, meta)
    p_cell = points.columns[P_CELL].astype(np.float64) if refined else np.ones(len(points))
    # Scores of folds are compared with their own threshold.
    held = record.model_copy(update={"threshold": brain.threshold})
    points.meta["threshold"] = f"{brain.threshold:g}"
    known = measured_count(points, p_cell if refined else None, record.refiners[0], [held])
    parts, rows = brain.parts, []
    of_point, of_cell = box_of(points.zyx, parts), box_of(brain.cells_zyx, parts)
    for what in ("whole", *range(len(parts))):
        here, true = (of >= 0 if what == "whole" else of == what for of in (of_point, of_cell))
        of = Count(0, 0, 0) if known is None else expected_count(p_cell[here], None, known)
        n = int(true.sum())
        rows.append({
            "domain": brain.name, "group": brain.group, "part": str(what), "true": n,
            "count": round(of.value, 1), "low": round(of.low, 1), "high": round(of.high, 1),
            "holds": bool(of.low <= n <= of.high), "width": round((of.high - of.low) / max(n, 1), 4),
            "alike": 0.0 if known is None else round(known.alike, 2),
        })  # fmt: skip
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of intervals that hold, and their width in true counts."""
    told = [row for row in rows if row["true"] >= FEWEST]
    return {
        "intervals": len(told),
        "hold": float(np.mean([row["holds"] for row in told])),
        "mean_width": float(np.mean([row["width"] for row in told])),
        "median_width": float(np.median([row["width"] for row in told])),
    }


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=120)
    parser.add_argument("--folds", nargs="+", default=[], help="fold detectors of detector-microglia")
    parser.add_argument("--final-test", action="store_true", help="phantoms of seeds 1000 to 1099")
    parser.add_argument("--records", type=Path, help="with --final-test: report with records to count by")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path, help="folder of detections, to go on from or to share")
    args = parser.parse_args(arguments)
    detectors = {name: load(name, kind="detector", device="cpu") for name in {p.detector for p in PAIRS}}
    refiners = {name: Refiner.load(find("model", name)) for name in set(REFINERS.values())}
    folds = [load(path, kind="detector", device="cpu") for path in args.folds]
    chosen = phantom_domains(args.phantoms, test=True) if args.final_test else domains(args.phantoms)
    kept = json.loads(args.records.read_text()) if args.final_test else None

    def brain(domain: Domain, name: str) -> Brain:
        detector, threshold = detectors[name], detectors[name].config.threshold
        if name == BY_FOLDS and kept is None:
            detector, threshold = fold_of(domain, folds)
        refiner = refiners[REFINERS[domain.group]]
        return Brain.of(domain, detector, threshold, refiner, args.cache and args.cache / name)

    report: dict[str, Any] = {"summary": {}, "rows": {}, "records": {}}
    brains: dict[str, dict[str, Brain]] = {name: {} for name in detectors}
    for pair in PAIRS:
        if pair.detector == BY_FOLDS and kept is None and not folds:
            continue
        detector, made = detectors[pair.detector], brains[pair.detector]
        known = (NOT_REFINED if pair.refiner is None else str(refiners[pair.refiner].sha256_),)
        for domain in chosen:
            if domain.group in (*pair.brains, *pair.others) and domain.name not in made:
                made[domain.name] = brain(domain, pair.detector)
        own, others = (
            [b for b in made.values() if b.group in groups] for groups in (pair.brains, pair.others)
        )

        def record(left_out: str | None = None) -> CountRecord:
            if kept is not None:
                return CountRecord.model_validate(kept["records"][pair.name])  # noqa: B023
            groups = ([b for b in group if b.name != left_out] for group in (own, others))  # noqa: B023
            return record_of(*groups, detector, known)  # noqa: B023

        if kept is None:
            report["records"][pair.name] = record().model_dump(mode="json")
        rows = [row for b in (*own, *others)
                for row in rows_of(b, detector, record(b.name), pair.refiner is not None)]  # fmt: skip
        _tell(report, pair.name, rows)
    if args.out is not None:
        args.out.write_text(_json(report))
        if kept is None:
            args.out.with_name("_counts.json").write_text(_json(list(report["records"].values())))


def _json(report: Any) -> str:
    """JSON with a volume of a record, or a row, on one line."""
    text = json.dumps(report, default=float, indent=1)
    # Rows and looks first, then the volumes that hold a look.
    for inner in (r"[^\[\]{}]*?", r"[^\[\]{}]*\[[^\[\]\n]*\]"):
        text = re.sub(rf"([\[{{])\s+({inner})\s+([\]}}])", _one_line, text)
    return text + "\n"


def _one_line(found: re.Match[str]) -> str:
    return found[1] + " ".join(found[2].split()) + found[3]


def _tell(report: dict[str, Any], name: str, rows: Sequence[dict[str, Any]]) -> None:
    report["rows"][name] = [row for row in rows if row["part"] == "whole"]
    for group in sorted({row["group"] for row in rows}):
        for what in ("whole", "parts"):
            some = [row for row in rows if row["group"] == group
                    and (row["part"] == "whole") == (what == "whole") and row["true"] >= FEWEST]  # fmt: skip
            if some:
                report["summary"][f"{name}: {group}, {what}"] = one = summary(some)
                print(f"counts, {name}: {group}, {what}", {k: round(v, 3) for k, v in one.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
