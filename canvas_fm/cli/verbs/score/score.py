"""Verbs `evaluate` and `tables`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from canvas_fm.cli.parser import (
    Parser,
    Verbs,
    add_roi,
    add_verb,
    add_volume_flags,
    add_zyx_um,
    positive_float,
)

if TYPE_CHECKING:
    from canvas_fm.evaluation.detection.score import Score


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "evaluate",
        run_evaluate,
        "score predicted against true cells",
        "Match predictions one to one with true cells and count true positives, false positives and false "
        "negatives: accuracy, precision, recall, F1 with intervals, average precision, and what chance would "
        "score. Both files hold z, y, x in voxels of level 0, in any format that `canvas-fm points` knows.",
        fill=_fill_evaluate,
        check=_evaluate_faults,
    )
    add_verb(
        verbs,
        "tables",
        run_tables,
        "detectors by data sets and regions, as in the CANVAS paper",
        "Score every model of a manifest on every region and write OUT/tables.md, tables.csv and "
        "tables.html: matched data sets bold, the best of each row underlined, and the gap between them.",
        fill=_fill_tables,
    )


def _fill_evaluate(parser: Parser) -> None:
    parser.add_argument("predictions", metavar="PRED", help="the detected cells")
    parser.add_argument("truth", metavar="TRUTH", help="the true cells")
    tolerance = parser.add_mutually_exclusive_group(required=True)
    tolerance.add_argument(
        "--marker", metavar="NAME", help="the CANVAS paper's tolerance in voxels for this marker"
    )
    tolerance.add_argument(
        "--tolerance-voxels", type=positive_float, metavar="N", help="farthest match in voxels"
    )
    tolerance.add_argument(
        "--tolerance-um", type=positive_float, metavar="N", help="farthest match in micrometres"
    )
    add_zyx_um(
        parser,
        "--voxel-um",
        "voxel size in micrometres; needed for µm unless the volume or the files state it",
    )
    add_roi(parser, "boxes to score")
    parser.add_argument("--threshold", type=float, metavar="T", help="score only predictions at or above it")
    parser.add_argument("--score-column", metavar="NAME", help="default: score, else p_cell, else log_score")
    parser.add_argument(
        "--volume", metavar="VOLUME", help="the image: finds points outside, and is in the figure"
    )
    parser.add_output(
        "--figure",
        metavar="FIG.png",
        help="true positives, false positives and false negatives over the volume",
    )
    parser.add_output(
        "--out", metavar="REPORT.json", help="also write the result, with checksums of the files"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the intervals and of chance; default 0")
    add_volume_flags(parser, omit=["voxel_um", "marker"])


def _fill_tables(parser: Parser) -> None:
    parser.add_argument(
        "manifest", metavar="MANIFEST.yaml", help="models, data sets, regions and where cells lie"
    )
    parser.add_output("--out", folder=True, required=True, metavar="DIR", help="folder to write")


def _evaluate_faults(args: argparse.Namespace) -> list[str]:
    if args.figure is not None and args.volume is None:
        return ["--figure shows cells over an image; give it with --volume"]
    return []


def run_evaluate(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from canvas_fm.data.dataset.dataset_addresses import points_path
    from canvas_fm.data.points.boxes import read_boxes
    from canvas_fm.data.points.formats.read_write import voxel_um_of
    from canvas_fm.data.points.points import Points
    from canvas_fm.data.store.tar_index import on_disk
    from canvas_fm.evaluation.detection.score import evaluate
    from canvas_fm.files.atomic import write_text_atomic
    from canvas_fm.files.checksum import sha256
    from canvas_fm.version import __version__

    points, truth = Points.read(args.predictions), Points.read(args.truth)
    volume = None
    if args.volume is not None:
        from canvas_fm.data.volume.volume import Volume

        volume = Volume.open(args.volume, voxel_um=args.voxel_um, **args.volume_options.explicit)
    stated = None if volume is None else volume.voxel_um
    score = evaluate(
        points,
        truth,
        voxel_um=args.voxel_um or stated or voxel_um_of(points.meta) or voxel_um_of(truth.meta),
        marker=args.marker,
        tolerance_um=args.tolerance_um,
        tolerance_voxels=args.tolerance_voxels,
        within=None if args.roi is None else read_boxes(args.roi),
        shape_zyx=None if volume is None else volume.shape_zyx,
        score_column=args.score_column,
        threshold=args.threshold,
        seed=args.seed,
    )
    files = {"predictions": args.predictions, "truth": args.truth}
    result: dict[str, Any] = {
        **score.to_json(),
        "threshold": score.threshold,
        "files": {
            name: {"path": path, "sha256": sha256(on_disk(points_path(path)))} for name, path in files.items()
        },
        "canvas_fm": __version__,
    }
    if volume is not None and args.figure is not None:
        from canvas_fm.evaluation.detection.figure import score_figure

        score_figure(score, volume, args.figure, title=volume.name)
        result["figure"] = args.figure
    text = json.dumps(result, indent=2, allow_nan=False)
    if args.out is not None:
        write_text_atomic(Path(args.out), text + "\n")
    print(text if args.json else _for_people(score))


def _for_people(score: Score) -> str:
    """The score in aligned lines, with intervals and chance level."""
    counts, interval = score.counts, score.interval
    where = (
        ""
        if score.boxes is None
        else f", in {len(score.boxes)} {'box' if len(score.boxes) == 1 else 'boxes'}"
    )
    rows = [
        ("true cells", f"{counts.tp + counts.fn:,}{where}"),
        ("predictions", f"{counts.tp + counts.fp:,}, within {score.tolerance}"),
        ("TP, FP, FN", f"{counts.tp:,}, {counts.fp:,}, {counts.fn:,}"),
    ]
    if score.threshold is not None:
        rows.insert(2, ("threshold", f"{score.threshold:g}"))
    for name in ("accuracy", "precision", "recall", "f1", "count_error"):
        value = getattr(counts, name)
        text = "undefined" if value is None else f"{value:.3f}"
        if name in interval.of:
            text += "   {:.3f} to {:.3f}".format(*interval.of[name])
        rows.append(("F1" if name == "f1" else name.replace("_", " "), text))
    if score.optimal is not None and score.optimal.f1 is not None:
        rows.append(("F1, optimal", f"{score.optimal.f1:.3f}"))
    if score.in_um is not None and score.in_um[1].f1 is not None:
        rows.append((f"F1 at {score.in_um[0]:g} µm", f"{score.in_um[1].f1:.3f}"))
    if score.chance is not None:
        text = f"{score.chance.f1:.3f}   {score.chance.predictions:,} random points in {score.chance.region}"
        rows.append(("F1 at chance", text))
    if score.curve is not None and score.average_precision is not None:
        rows.append(("average precision", f"{score.average_precision:.3f}"))
        if score.curve.best is not None:
            threshold, f1 = score.curve.best
            rows.append(
                ("best F1", f"{f1:.3f}   at threshold {threshold:g}, chosen on the truth: an upper bound")
            )
    if score.mean_distance is not None:
        unit = "µm" if score.tolerance.unit == "um" else "voxels"
        rows.append(("mean distance", f"{score.mean_distance:.2f} {unit}"))
    rows.append(("intervals", f"95 %, bootstrap over {interval.over}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def run_tables(args: argparse.Namespace) -> dict:
    from canvas_fm.evaluation.tables.tables import make_tables
    from canvas_fm.evaluation.tables.write import write_tables

    tables = make_tables(args.manifest)
    written = write_tables(tables, args.out)
    gaps = {model: tables.gap(model) for model in tables.models}
    result: dict[str, Any] = {"written": [str(path) for path in written]}
    result["rows"] = len(tables.rows)
    result["f1"] = {
        model: {"own": gap[0], "elsewhere": gap[1]} for model, gap in gaps.items() if gap is not None
    }
    return result
