"""How often 90 % intervals of cell counts hold: detect, refine, count, each domain by counts of the others.

`python -m tests.benchmarks counts --phantoms 120 --out report.json`: labelled cubes (where the data are) and
randomised phantoms; what ships, by the records of `measured_count` made of the other domains. `--final-test`
scores phantoms of seeds 1000 to 1099, once, by the records of `--records report.json`. The report's `records`
are what `canvas_fm/weights/_counts.json` holds; those of `detector-microglia` come from its folds in
`recipes/domains/microglia.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from canvas_fm.data.points.boxes import box_of, inside_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.files.shipped import find
from canvas_fm.heads.refine.apply.apply import P_CELL
from canvas_fm.heads.refine.counts.count_interval import NORMAL, ROW_ERRORS, Count, expected_count
from canvas_fm.heads.refine.counts.measured_count import CountRecord, doubtful_share, measured_count
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.load_model import Detector, load
from canvas_fm.pipeline.detect_refined import detect_refined
from canvas_fm.pipeline.domain_volumes import Domain, phantom_domains
from tests.benchmarks.detection.domain_candidates import domains

FEWEST = 20  # cells of a count that says something
LEARN = 5  # cells of a domain that goes into a record
REFINERS = {"microglia": "refiner-microglia", "phantom somata": "refiner-microglia",
            "cFos": "refiner-cfos", "phantom nuclei": "refiner-cfos"}  # fmt: skip
FOLDS = Path(__file__).parents[3] / "recipes" / "domains" / "microglia.json"


@dataclass(frozen=True)
class Pair:
    """A detector with a refiner, its groups of held-out domains, and how its counts are measured."""

    detector: str
    refiner: str
    groups: tuple[str, ...]
    counted_by: Literal["detections", "p_cell"]
    shipped: bool = True


PAIRS = (
    Pair("detector-cfos", "refiner-cfos", ("cFos",), "detections"),
    Pair("detector-phantoms", "refiner-cfos", ("cFos", "phantom nuclei"), "detections"),
    Pair("detector-phantoms", "refiner-microglia", ("microglia",), "p_cell", shipped=False),
    Pair("detector-phantoms", "refiner-microglia", ("microglia", "phantom somata"), "detections"),
    Pair("detector-phantoms", "any", ("phantom nuclei", "phantom somata"), "detections", shipped=False),
)


@dataclass(frozen=True)
class Brain:
    """Detections of a domain with P(cell), its true cells, and the parts in which both are counted."""

    name: str
    group: str
    points: Points
    cells_zyx: np.ndarray
    boxes: np.ndarray

    @classmethod
    def of(cls, domain: Domain, detector: Detector, refiner: Refiner, cache: Path | None) -> Brain:
        path = None if cache is None else cache / f"{domain.name.replace(' ', '_')}.npz"
        if path is not None and path.is_file():
            with np.load(path) as kept:
                points = Points(kept["zyx"], {"score": kept["score"], P_CELL: kept["p"]})
                return cls(domain.name, domain.group, points, kept["cells"], kept["boxes"])
        volume, cells, boxes, _ = domain.open()
        um = detector.config.voxel_um
        other = any(abs(a - b) > 0.05 * b for a, b in zip(volume.voxel_um, um, strict=True))
        with tempfile.TemporaryDirectory() as folder:
            points = detect_refined(detector, volume, refiner, Path(folder) / "cells.csv", device="cpu",
                                    resample=other, show=False)  # fmt: skip
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, zyx=points.zyx, score=points.columns["score"], cells=cells, boxes=boxes,
                                p=points.columns[P_CELL])  # fmt: skip
        return cls(domain.name, domain.group, points, cells, boxes)

    def at(self, detector: Detector) -> Points:
        """The detections of a detector at its own threshold, as its file states them."""
        threshold = detector.config.threshold
        keep = self.points.columns["score"] >= np.float32(threshold)
        meta = {"detector_sha256": detector.sha256, "threshold": str(threshold)}
        return Points(self.points.zyx[keep], {k: v[keep] for k, v in self.points.columns.items()}, meta)

    @property
    def parts(self) -> np.ndarray:
        if len(self.boxes) > 1:
            return self.boxes
        low, high = self.boxes[0, :3], self.boxes[0, 3:]
        middle = (low + high) // 2
        upper = np.stack(np.unravel_index(np.arange(8), (2, 2, 2)), axis=1).astype(bool)
        return np.concatenate([np.where(upper, middle, low), np.where(upper, high, middle)], axis=1)


def record_of(
    brains: Sequence[Brain], detector: Detector, refiners: tuple[str, ...], counted_by: Any
) -> CountRecord:
    """Counts beside true cells, in what is labelled."""
    counted, cells, doubtful = {}, {}, {}
    for brain in brains:
        points = brain.at(detector)
        inside = inside_boxes(points.zyx, brain.boxes)
        of = points.columns[P_CELL][inside].sum() if counted_by == "p_cell" else inside.sum()
        counted[brain.name] = round(float(of), 2)
        cells[brain.name] = int(inside_boxes(brain.cells_zyx, brain.boxes).sum())
        doubtful[brain.name] = round(doubtful_share(points.columns["score"], detector.config.threshold), 4)
    return CountRecord(
        made_by=detector.sha256, threshold=detector.config.threshold, refiners=refiners,
        counted_by=counted_by, counted=counted, cells=cells, doubtful=doubtful,
    )  # fmt: skip


def without(record: CountRecord, name: str) -> CountRecord:
    keep = lambda of: {key: value for key, value in of.items() if key != name}  # noqa: E731
    update = {key: keep(getattr(record, key)) for key in ("counted", "cells", "doubtful")}
    return record.model_copy(update=update)


def rows_of(brain: Brain, detector: Detector, record: CountRecord) -> list[dict[str, Any]]:
    """Counts of what is labelled, and of its parts; those of the domain's whole volume give the ratio."""
    points = brain.at(detector)
    known = measured_count(points, points.columns[P_CELL], record.refiners[0], [record])

    def count(p_cell: np.ndarray) -> Count:
        return Count(0.0, 0.0, 0.0) if known is None else expected_count(p_cell, None, known)

    return _rows(brain, points, count)


def _rows(brain: Brain, points: Points, count: Callable[[np.ndarray], Count]) -> list[dict[str, Any]]:
    parts, p_cell = brain.parts, points.columns[P_CELL].astype(np.float64)
    of_point, of_cell = box_of(points.zyx, parts), box_of(brain.cells_zyx, parts)
    rows = []
    for what in ("whole", *range(len(parts))):
        here, true = (of >= 0 if what == "whole" else of == what for of in (of_point, of_cell))
        of, n = count(p_cell[here]), int(true.sum())
        rows.append({
            "domain": brain.name, "group": brain.group, "part": str(what), "true": n,
            "count": round(of.value, 1), "low": round(of.low, 1), "high": round(of.high, 1),
            "holds": bool(of.low <= n <= of.high), "width": round((of.high - of.low) / max(n, 1), 4),
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


def folds_record(detector: Detector, refiner: Refiner) -> CountRecord:
    """Detections of `detector-microglia` by the folds that had not seen a cube, from the committed report."""
    scored = json.loads(FOLDS.read_bytes())["methods"]["detector-microglia-folds"]["domains"]
    cubes = {name: of for name, of in scored.items() if not name.startswith("phantom ") and name != "4150"}
    return CountRecord(
        made_by=detector.sha256, threshold=detector.config.threshold, refiners=(str(refiner.sha256_),),
        counted_by="detections", counted={name: of["tp"] + of["fp"] for name, of in cubes.items()},
        cells={name: of["tp"] + of["fn"] for name, of in cubes.items()},
    )  # fmt: skip


def folds_rows(record: CountRecord) -> list[dict[str, Any]]:
    rows = []
    for name, true in record.cells.items():
        log, half = without(record, name).ratio(1.0)
        value = record.counted[name] * np.exp(log)
        wide = np.hypot(half, NORMAL * np.sqrt(ROW_ERRORS / value))  # of P(cell) nothing is known here
        low, high = value * np.exp(-wide), value * np.exp(wide)
        rows.append({"domain": name, "group": "microglia", "part": "whole", "true": true,
                     "count": round(value, 1), "low": round(low, 1), "high": round(high, 1),
                     "holds": bool(low <= true <= high), "width": round((high - low) / true, 4)})  # fmt: skip
    return rows


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=120)
    parser.add_argument("--final-test", action="store_true", help="phantoms of seeds 1000 to 1099")
    parser.add_argument("--records", type=Path, help="with --final-test: report with records to count by")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path, help="folder of detections, to go on from or to share")
    args = parser.parse_args(arguments)
    names = {pair.detector for pair in PAIRS} | {"detector-microglia"}
    detectors = {name: load(name, kind="detector", device="cpu") for name in names}
    refiners = {name: Refiner.load(find("model", name)) for name in set(REFINERS.values())}
    chosen = phantom_domains(args.phantoms, test=True) if args.final_test else domains(args.phantoms)
    brains = {
        name: [
            Brain.of(domain, detectors[name], refiners[REFINERS[domain.group]],
                     None if args.cache is None else args.cache / name)
            for domain in chosen if name == "detector-phantoms" or REFINERS[domain.group] == "refiner-cfos"
        ]
        for name in sorted({pair.detector for pair in PAIRS})
    }  # fmt: skip
    report: dict[str, Any] = {"summary": {}, "rows": {}, "records": {}, "shipped": []}
    kept = json.loads(args.records.read_text()) if args.final_test else None
    for pair in PAIRS:
        name = f"{pair.detector}, {pair.refiner}, {pair.counted_by} of {len(pair.groups)}"
        detector = detectors[pair.detector]
        scored = [brain for brain in brains[pair.detector] if brain.group in pair.groups]
        others = [brain for brain in brains[pair.detector] if brain.group not in pair.groups
                  and REFINERS[brain.group] == pair.refiner]  # fmt: skip
        known = tuple(str(refiners[one].sha256_) for one in (pair.refiner,) if one in refiners) or ("any",)
        if kept is None:
            learn = [b for b in scored if len(b.cells_zyx) >= LEARN]
            record = record_of(learn, detector, known, pair.counted_by)
            report["records"][name] = record.model_dump(mode="json")
            report["shipped"] += [name] if pair.shipped else []
        else:
            record = CountRecord.model_validate(kept["records"][name])
        rows = [row for brain in scored for row in rows_of(brain, detector, without(record, brain.name))]
        rows += [row for brain in others for row in rows_of(brain, detector, record)]
        _tell(report, name, rows)
    if kept is None:
        microglia = folds_record(detectors["detector-microglia"], refiners["refiner-microglia"])
        name = "detector-microglia, refiner-microglia"
        report["records"][name] = microglia.model_dump(mode="json")
        report["shipped"].append(name)
        _tell(report, name, folds_rows(microglia))
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1, default=float) + "\n")


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
