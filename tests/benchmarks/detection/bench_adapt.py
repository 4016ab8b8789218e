"""What a few labels of a new brain bring: `adapt` on one half of many domains, scored on the other half.

`python -m tests.benchmarks adapt --cells 20 --draws 3 --phantoms 40 --out report.json`: a box around a random
cell of a half grows until it holds so many cells, and the older `detector-phantoms-1`, which saw none of the
domains, is adapted to them without training (`--layers none`). Domains apart where its F1 was below .8.

`--layers all --draws 1` lets layers be trained too (a minute of CPU a draw), beside the same net trained from
nothing on all labels of that half, up to 200; with `--out` it goes on where it was. `--every-way` adds what
each way has on labels that it was not fitted on, and on the other half: what a rule of choice is chosen by.
`--detector FOLDER` is adapted in place of that, as a marker's own detector of a fold.
`--phantom-seeds 19 21 --shape 64 256 256`: these phantoms alone, so large that a half holds 200 labels.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canvas_fm.data.points.boxes import inside_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.score import evaluate
from canvas_fm.evaluation.domains.scores import THRESHOLDS, f1_on
from canvas_fm.files.shipped import find, shipped
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.detect.maxima.blob_amplitude import FLOOR
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.folder.network_config import AmplitudeConfig
from canvas_fm.models.load_model import Detector, load
from canvas_fm.pipeline.domain_volumes import Domain, phantom_domain
from canvas_fm.training.detector.adapt.adapt import _labelled, _tuned, adapt_detector
from canvas_fm.training.detector.adapt.adapt_flags import AdaptOptions
from canvas_fm.training.detector.adapt.amplitude import FEWEST_CELLS, amplitude_detector
from canvas_fm.training.detector.adapt.fine_tune import fine_tune, fine_tune_recipe
from canvas_fm.training.detector.adapt.label_folds import LabelFolds, best_threshold, nearest
from canvas_fm.training.detector.adapt.self_training import student_of
from canvas_fm.training.detector.adapt.strategies import Strategy, choose_strategy, score_strategies
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.detector.threshold import LOWEST_THRESHOLD
from canvas_fm.training.mae.training_crops import VolumeSource
from tests.benchmarks.detection.domain_candidates import candidates_of, domains

OLDER = str(shipped("older model")["detector-phantoms-1"])  # amplitude is not in its score yet
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
        _, chosen = choose_strategy(ways, len(few.inner_zyx))
        of = "threshold" if chosen.way == "unadapted" else chosen.way
        f1[name] = curves[of][nearest(chosen.threshold)]
    f1["best threshold"] = curves["threshold"].max()
    return {
        "domain": brain.domain.name, "seed": seed, "labels": len(few.inner_zyx), "chosen": chosen.way,
        **{name: round(float(value), 4) for name, value in f1.items()},
    }  # fmt: skip


def trained_draw(
    domain: Domain, detector: Detector, cells: int, seed: int, layers: str, every_way: bool = False
) -> dict[str, Any] | None:
    """As `draw`, where layers may be trained, and beside it a net from nothing with up to 200 labels.

    With `every_way` the row has `ways`: of each the cross-validated F1 and gain over the unadapted detector,
    the share of resamples in which it is above, the threshold, and F1 on the other half.
    """
    volume, points, boxes, _ = domain.open()
    labelled = Labelled(VolumeSource(domain.name, volume), points, boxes)
    halves = _halves(labelled, cells, seed)
    if halves is None:
        return None
    few, test = halves
    options = {"layers": layers, "tolerance_um": domain.tolerance_um, "resample": True}
    with tempfile.TemporaryDirectory() as folder:
        try:
            adapted = adapt_detector(
                detector, volume, Points(points), few, out=Path(folder) / "adapted", show=False, **options
            )
        except CanvasError:
            return None
    enough = _halves(labelled, min(200, _cells_of_half(labelled, seed)), seed)
    nothing, labels = _from_nothing(detector, labelled, enough[0] if enough else few, domain, seed)
    f1 = {
        name: _f1_of(one, labelled, test, domain.tolerance_um)
        for name, one in (
            ("unadapted", detector),
            ("as shipped", adapted.detector),
            ("from nothing", nothing),
        )
    }
    row = {
        "domain": domain.name, "seed": seed, "labels": adapted.cells, "chosen": adapted.chosen,
        "labels from nothing": labels, **{name: round(value, 4) for name, value in f1.items()},
    }  # fmt: skip
    if every_way:
        opts = AdaptOptions.of(**options)
        fitted = _labelled(detector, volume, Points(points), few, opts)
        row["ways"] = {}
        for score in adapted.scores:
            way = _at(_by(score.way, detector, fitted, opts), score.threshold)
            row["ways"][score.way] = {
                "f1": round(score.f1, 4), "gain": round(score.gain, 4), "better": round(score.better, 4),
                "threshold": score.threshold,
                "other half": round(_f1_of(way, labelled, test, domain.tolerance_um), 4),
            }  # fmt: skip
    return row


def _by(way: Strategy, detector: Detector, fitted: Labelled, opts: AdaptOptions) -> Detector:
    """The detector adapted by one way; its threshold is still the old one."""
    if way == "amplitude":
        adapted = amplitude_detector(detector, fitted)
        assert adapted is not None
        return adapted
    return detector if way in ("unadapted", "threshold") else _tuned(detector, fitted, way, opts)


def _at(detector: Detector, threshold: float) -> Detector:
    return Detector(detector.config.model_copy(update={"threshold": threshold}), detector.net)


def _from_nothing(
    detector: Detector, labelled: Labelled, boxes: np.ndarray, domain: Domain, seed: int
) -> tuple[Detector, int]:
    """The detector's net from random weights, trained on the boxes' labels; its threshold found on them.

    Its score is the heat alone, as that of a self-trained one.
    """
    here = replace(labelled, source=_source(detector, labelled), boxes=boxes)
    torch.manual_seed(seed)
    new = Detector(detector.config, HeatMapNet(detector.config.architecture))
    net = fine_tune(new, here, fine_tune_recipe(new, here, AdaptOptions().steps, seed))
    trained = student_of(detector, net)
    margin = np.ceil(domain.tolerance_um / np.asarray(here.um))
    found = _around(_found(trained, labelled, LOWEST_THRESHOLD), boxes, margin)
    counts = LabelFolds.of(here, domain.tolerance_um, 3).counts(found)
    threshold = best_threshold(counts, 0, detector.config.threshold)
    return _at(trained, threshold), len(here.inner_zyx)


def _source(detector: Detector, labelled: Labelled) -> VolumeSource:
    volume, um = labelled.source.volume, detector.config.voxel_um
    other = any(abs(a - b) > 0.05 * b for a, b in zip(volume.voxel_um, um, strict=True))
    return VolumeSource(labelled.source.name, volume, um if other else None)


def _found(detector: Detector, labelled: Labelled, threshold: float) -> Points:
    other = _source(detector, labelled).resample_to is not None
    return detect(detector, labelled.source.volume, threshold=threshold, resample=other, show=False)


def _f1_of(detector: Detector, labelled: Labelled, boxes: np.ndarray, tolerance_um: float) -> float:
    points = _found(detector, labelled, detector.config.threshold)
    score = evaluate(
        points, labelled.points_zyx, voxel_um=labelled.um, tolerance_um=tolerance_um, within=boxes,
        threshold=None, chance=False,
    )  # fmt: skip
    return float(score.counts.f1 or 0.0)


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
    random = np.random.default_rng([seed, cells])
    here, there = _sides(boxes, seed)
    test = _cut(boxes, there)
    inside = labelled.inner_zyx[inside_boxes(labelled.inner_zyx, here[None])]
    if len(inside) < 0.6 * cells or inside_boxes(labelled.points_zyx, test).sum() < FEWEST:
        return None
    centre = inside[random.integers(len(inside))]
    reach = np.sort((np.abs(inside - centre) * um).max(axis=1))[min(cells, len(inside)) - 1] + 1e-6
    box = np.concatenate([np.floor(centre - reach / um), np.ceil(centre + reach / um) + 1]).astype(np.int64)
    return _cut(_cut(boxes, here), box), test


def _sides(boxes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The half along x that is labelled, and the other one."""
    left = np.random.default_rng([seed, 1]).random() < 0.5
    whole = np.concatenate([boxes[:, :3].min(axis=0), boxes[:, 3:].max(axis=0)])
    middle = int(whole[2] + whole[5]) // 2
    here, there = whole.copy(), whole.copy()
    here[5 if left else 2] = there[2 if left else 5] = middle
    return here, there


def _cells_of_half(labelled: Labelled, seed: int) -> int:
    return int(inside_boxes(labelled.inner_zyx, _sides(labelled.boxes, seed)[0][None]).sum())


def _cut(boxes: np.ndarray, by: np.ndarray) -> np.ndarray:
    parts = np.concatenate([np.maximum(boxes[:, :3], by[:3]), np.minimum(boxes[:, 3:], by[3:])], axis=1)
    return parts[(parts[:, 3:] > parts[:, :3]).all(axis=1)]


def summaries(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For domains below and above .8 the gain with a 95 % interval over domains, and the worst draw."""
    for below in (True, False):
        some = [row for row in rows if (row["unadapted"] < LOW) == below]
        names = sorted({row["domain"] for row in some})
        for way in [
            way for way in ("threshold alone", "as shipped", "from nothing") if some and way in some[0]
        ]:
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
                **(
                    {"best_threshold": float(np.mean([row["best threshold"] for row in some]))}
                    if "best threshold" in some[0]
                    else {}
                ),
            }  # fmt: skip


def over_nothing(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """F1 after adapting less that of training from nothing on the same half, in pairs over domains."""
    names = sorted({row["domain"] for row in rows})
    gains = [
        np.mean([row["as shipped"] - row["from nothing"] for row in rows if row["domain"] == name])
        for name in names
    ]
    resampled = np.random.default_rng(0).choice(gains, (4000, len(names))).mean(axis=1)
    return {
        "way": "as shipped less from nothing", "domains": len(names), "mean": float(np.mean(gains)),
        "interval_95": np.quantile(resampled, [0.025, 0.975]).tolist(),
        "ahead": int(np.sum(np.greater(gains, 0))), "worst": float(min(gains)),
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
    parser.add_argument("--layers", choices=("none", "self", "last", "all"), default="none")
    parser.add_argument("--every-way", action="store_true", help="with --layers last or all")
    parser.add_argument(
        "--detector",
        default=OLDER,
        metavar="NAME",
        help="with --layers self, last or all: another",
    )
    parser.add_argument("--domains", nargs="+", metavar="NAME", help="with --layers: only these")
    parser.add_argument("--phantom-seeds", type=int, nargs="+", metavar="SEED", help="with --layers")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="of these phantoms")
    args = parser.parse_args(arguments)
    if args.layers == "none" and args.detector != OLDER:
        parser.error("--detector goes with --layers self, last or all")
    if args.layers in ("none", "self") and args.every_way:
        parser.error("--every-way goes with --layers last or all")
    detector = load(find("model", args.detector), kind="detector", device="cpu")
    rows = (_without_training if args.layers == "none" else _with_training)(args, detector)
    report = {str(cells): list(summaries(of_size)) for cells, of_size in rows.items()}
    for cells, of_size in rows.items():
        if args.layers != "none" and of_size:
            report[str(cells)].append(over_nothing(of_size))
    for cells, lines in report.items():
        for line in lines:
            print(f"adapt, {cells} cells:", json.dumps(_rounded(line)))
    if args.out is not None:
        args.out.write_text(json.dumps({"summary": report, "rows": rows}, indent=1) + "\n")


def _without_training(args: argparse.Namespace, detector: Detector) -> dict[int, list[dict[str, Any]]]:
    rows: dict[int, list[dict[str, Any]]] = {cells: [] for cells in args.cells}
    for domain in domains(args.phantoms):
        brain = Brain.of(domain, detector, args.cache)
        for cells, of_size in rows.items():
            seeds = range(args.first_draw, args.first_draw + args.draws)
            drawn = [draw(brain, detector, cells, seed) for seed in seeds]
            of_size += [row for row in drawn if row is not None]
    return rows


def _with_training(args: argparse.Namespace, detector: Detector) -> dict[int, list[dict[str, Any]]]:
    kept = json.loads(args.out.read_text())["rows"] if args.out is not None and args.out.is_file() else {}
    rows: dict[int, list[dict[str, Any]]] = {cells: kept.get(str(cells), []) for cells in args.cells}
    for domain in _chosen_domains(args):
        for cells, of_size in rows.items():
            for seed in range(args.first_draw, args.first_draw + args.draws):
                if any((row["domain"], row["seed"]) == (domain.name, seed) for row in of_size):
                    continue
                row = trained_draw(domain, detector, cells, seed, args.layers, args.every_way)
                if row is None:
                    continue
                of_size.append(row)
                print(json.dumps(row), flush=True)
                if args.out is not None:
                    args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return rows


def _chosen_domains(args: argparse.Namespace) -> list[Domain]:
    if args.phantom_seeds:
        shape = None if args.shape is None else (args.shape[0], args.shape[1], args.shape[2])
        return [phantom_domain(seed, shape_zyx=shape) for seed in args.phantom_seeds]
    every = domains(args.phantoms)
    return [domain for domain in every if not args.domains or domain.name in args.domains]


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: np.round(value, 4).tolist() if isinstance(value, float | list) else value
            for key, value in values.items()}  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
