"""What a few labels of a new brain bring: `adapt` on one half of many domains, scored on the other half.

`python -m tests.benchmarks adapt --cells 20 --draws 3 --phantoms 40 --out report.json`: a box around a random
cell of a half grows until it holds so many cells, and `detector-phantoms`, which saw none of the domains, is
adapted to them without training (`--layers none`). Domains apart where its F1 was below .8.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.boxes import inside_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.score import evaluate
from canvas_fm.evaluation.domains.scores import THRESHOLDS, f1_on
from canvas_fm.inference.detect.maxima.amplitude import FLOOR
from canvas_fm.models.checkpoint import Detector, load
from canvas_fm.models.folder.config import AmplitudeConfig
from canvas_fm.pipeline.held_out_volumes import Domain
from canvas_fm.shipped import find
from canvas_fm.training.detector.adapt.amplitude import FEWEST_CELLS, amplitude_detector
from canvas_fm.training.detector.adapt.label_folds import LabelFolds, nearest
from canvas_fm.training.detector.adapt.strategies import choose_way, score_strategies
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.mae.crop_set import VolumeSource
from tests.benchmarks.domain_candidates import candidates_of, domains

FEWEST = 10  # cells of the half that is scored
LOW = 0.8  # F1 of the unadapted detector below which a domain counts as one that needs labels
_BOOST = 64_000.0  # unit of amplitudes as kept: so high that joined scores pass the detection's floor


@dataclass(frozen=True)
class Brain:
    """A domain with the detector's candidates, without and with amplitude in their score."""

    domain: Domain
    labelled: Labelled
    plain: Points
    joined: Points

    @classmethod
    def of(cls, domain: Domain, detector: Detector, cache: Path | None) -> Brain:
        volume, cells, boxes, _ = domain.open()
        labelled = Labelled(VolumeSource(domain.name, volume), cells, boxes)
        plain = candidates_of(domain, detector, None if cache is None else cache / "plain")
        amplitude = _amplitude_at_cells(detector, labelled).model_copy(update={"unit": _BOOST})
        bright = Detector(detector.config.model_copy(update={"amplitude": amplitude}), detector.net)
        joined = candidates_of(
            domain, bright, None if cache is None else cache / "amplitude", threshold=FLOOR
        )
        return cls(domain, labelled, plain, joined)

    def rescaled(self, amplitude: AmplitudeConfig) -> Points:
        """The candidates' scores with amplitudes in another unit."""
        score = np.clip(self.joined.columns["score"].astype(np.float64), 1e-7, 1 - 1e-7)
        logit = np.log(score / (1 - score)) + amplitude.weight * np.log(amplitude.unit / _BOOST)
        return Points(self.joined.zyx, {"score": 1 / (1 + np.exp(-logit))})


def _amplitude_at_cells(detector: Detector, labelled: Labelled) -> AmplitudeConfig:
    adapted = amplitude_detector(detector, labelled)
    assert adapted is not None
    assert adapted.config.amplitude is not None
    return adapted.config.amplitude


def draw(brain: Brain, detector: Detector, cells: int, seed: int) -> dict[str, Any] | None:
    """F1 on one half before and after, by `cells` labels of the other; None where there are too few."""
    halves = _halves(brain.labelled, cells, seed)
    if halves is None:
        return None
    boxes, test = halves
    few = Labelled(brain.labelled.source, brain.labelled.points_zyx, boxes)
    tolerance_um = brain.domain.tolerance_um
    try:
        folds = LabelFolds.of(few, tolerance_um, 3)
    except CanvasError:
        return None
    found = {"threshold": brain.plain}
    if len(few.inner_zyx) >= FEWEST_CELLS:
        found["amplitude"] = brain.rescaled(_amplitude_at_cells(detector, few))
    margin = np.ceil(tolerance_um / np.asarray(few.um))
    counts = {way: folds.counts(_around(points, boxes, margin)) for way, points in found.items()}
    start = detector.config.threshold
    scores = score_strategies(counts, folds, start, seed=0)
    curves = {way: _f1_curve(brain, points, test) for way, points in found.items()}
    f1 = {"unadapted": curves["threshold"][nearest(start)]}
    for name, ways in (("threshold alone", scores[:2]), ("as shipped", scores)):
        _, chosen = choose_way(ways, len(few.inner_zyx))
        of = "threshold" if chosen.way == "unadapted" else chosen.way
        f1[name] = curves[of][nearest(chosen.threshold)]
    f1["best threshold"] = curves["threshold"].max()
    return {
        "domain": brain.domain.name, "seed": seed, "labels": len(few.inner_zyx), "chosen": chosen.way,
        **{name: round(float(value), 4) for name, value in f1.items()},
    }  # fmt: skip


def _around(points: Points, boxes: np.ndarray, margin: np.ndarray) -> Points:
    low, high = boxes[:, :3].min(axis=0) - margin, boxes[:, 3:].max(axis=0) + margin
    near = ((points.zyx >= low) & (points.zyx <= high)).all(axis=1)
    return Points(points.zyx[near], {"score": points.columns["score"][near]})


def _f1_curve(brain: Brain, points: Points, boxes: np.ndarray) -> np.ndarray:
    score = evaluate(
        points, brain.labelled.points_zyx, voxel_um=brain.labelled.um,
        tolerance_um=brain.domain.tolerance_um, within=boxes, threshold=None, chance=False,
    )  # fmt: skip
    return np.zeros(len(THRESHOLDS)) if score.curve is None else f1_on(score.curve, THRESHOLDS)


def _halves(labelled: Labelled, cells: int, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Boxes of about so many labels in one half along x, and the boxes of the other half."""
    boxes, um = labelled.boxes, np.asarray(labelled.um)
    left = np.random.default_rng([seed, 1]).random() < 0.5
    random = np.random.default_rng([seed, cells])
    whole = np.concatenate([boxes[:, :3].min(axis=0), boxes[:, 3:].max(axis=0)])
    middle = int(whole[2] + whole[5]) // 2
    here, there = whole.copy(), whole.copy()
    here[5 if left else 2] = there[2 if left else 5] = middle
    test = _cut(boxes, there)
    inside = labelled.inner_zyx[inside_boxes(labelled.inner_zyx, here[None])]
    if len(inside) < 0.6 * cells or inside_boxes(labelled.points_zyx, test).sum() < FEWEST:
        return None
    centre = inside[random.integers(len(inside))]
    reach = np.sort((np.abs(inside - centre) * um).max(axis=1))[min(cells, len(inside)) - 1] + 1e-6
    box = np.concatenate([np.floor(centre - reach / um), np.ceil(centre + reach / um) + 1]).astype(np.int64)
    return _cut(_cut(boxes, here), box), test


def _cut(boxes: np.ndarray, by: np.ndarray) -> np.ndarray:
    parts = np.concatenate([np.maximum(boxes[:, :3], by[:3]), np.minimum(boxes[:, 3:], by[3:])], axis=1)
    return parts[(parts[:, 3:] > parts[:, :3]).all(axis=1)]


def summaries(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For domains below and above .8 the gain with a 95 % interval over domains, and the worst draw."""
    for below in (True, False):
        some = [row for row in rows if (row["unadapted"] < LOW) == below]
        names = sorted({row["domain"] for row in some})
        for way in ("threshold alone", "as shipped") if some else ():
            gains = np.array([row[way] - row["unadapted"] for row in some])
            by_domain = [gains[[row["domain"] == name for row in some]].mean() for name in names]
            resampled = np.random.default_rng(0).choice(by_domain, (4000, len(names))).mean(axis=1)
            yield {
                "unadapted": f"{'below' if below else 'from'} {LOW}", "way": way, "draws": len(some),
                "domains": len(names), "before": float(np.mean([row["unadapted"] for row in some])),
                "after": float(np.mean([row[way] for row in some])),
                "gain_over_domains": float(np.mean(by_domain)),
                "interval_95": np.quantile(resampled, [0.025, 0.975]).tolist(),
                "worst_draw": float(gains.min()), "lost_more_than_.02": float((gains < -0.02).mean()),
                "best_threshold": float(np.mean([row["best threshold"] for row in some])),
            }  # fmt: skip


def main(arguments: Sequence[str] = ()) -> None:
    """Print a line for each number of labels, group of domains and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[20])
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--first-draw", type=int, default=0)
    parser.add_argument("--phantoms", type=int, default=40)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path, help="folder of candidates, to go on from or to share")
    args = parser.parse_args(arguments)
    detector = load(find("model", "detector-phantoms"), kind="detector", device="cpu")
    rows: dict[int, list[dict[str, Any]]] = {cells: [] for cells in args.cells}
    for domain in domains(args.phantoms):
        brain = Brain.of(domain, detector, args.cache)
        for cells, of_size in rows.items():
            seeds = range(args.first_draw, args.first_draw + args.draws)
            drawn = [draw(brain, detector, cells, seed) for seed in seeds]
            of_size += [row for row in drawn if row is not None]
    report = {str(cells): list(summaries(of_size)) for cells, of_size in rows.items()}
    for cells, lines in report.items():
        for line in lines:
            print(f"adapt, {cells} cells:", json.dumps(_rounded(line)))
    if args.out is not None:
        args.out.write_text(json.dumps({"summary": report, "rows": rows}, indent=1) + "\n")


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: np.round(value, 4).tolist() if isinstance(value, float | list) else value
            for key, value in values.items()}  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
