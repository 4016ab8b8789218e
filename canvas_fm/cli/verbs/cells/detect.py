"""Verb `detect`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from canvas_fm.cli.open_volumes import add_companion, open_background, open_volume
from canvas_fm.cli.parser import Parser, Verbs, add_switch, add_verb, add_volume_flags, add_workers

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.inference.detect.tiles.tiled_detection import TiledDetection


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "detect",
        run_detect,
        "find the cells of a volume",
        "Find cells and write z, y, x and score, one row a cell. Memory goes by tiles, not by the volume; "
        "the same command again resumes. Without --threshold: exactly the rows at or above the operating "
        "threshold that the model holds; a low one gives candidates to refine. Where it was measured on "
        "held-out brains how many cells there are per detection of this detector at this threshold, "
        "CELLS.json states the count of all cells with its 90 % interval (expected_cells).",
        fill=_fill_detect,
        check=_detect_faults,
    )


def _fill_detect(detect: Parser) -> None:
    from canvas_fm.inference.detect.detect_flags import DetectOptions, LogOptions

    detect.add_argument(
        "model", metavar="MODEL", nargs="?", help="a detector's folder, or the name of a shipped one"
    )
    detect.add_argument("volume", metavar="VOLUME")
    detect.add_argument("--out", metavar="CELLS", help="file to write: .csv or .parquet")
    detect.add_argument(
        "--method",
        choices=["net", "log"],
        default="net",
        help="net: the trained MODEL; log: the Laplacian of a Gaussian, a baseline that takes no MODEL",
    )
    add_companion(detect, "--background", "the second channel of a model that takes one")
    detect.add_argument(
        "--refiner",
        metavar="MODEL",
        help="refine the detections in the same pass: a refiner's folder, or a shipped name; CELLS then has "
        "p_cell, as `refine apply` writes it",
    )
    detect.add_argument("--encoder", metavar="MODEL", help="the refiner's encoder, where it is not shipped")
    add_switch(detect, "--cells-only", "write only detections at or above the refiner's threshold")
    add_workers(detect)
    add_switch(detect, "--dry-run", "only say how many tiles, minutes and bytes it would take")
    detect.add_options("options", DetectOptions)
    detect.add_options("log", LogOptions, only=["sigma_um"])
    add_volume_flags(detect)


def _detect_faults(args: argparse.Namespace) -> list[str]:
    """Flags that are missing, or do not go together."""
    from canvas_fm.inference.detect.detect_flags import LogOptions

    faults = []
    if args.out is None and not args.dry_run:
        faults.append("detect needs --out CELLS.csv (or .parquet), the file to write; or --dry-run")
    if args.refiner is None:
        without = {"--encoder": args.encoder, "--cells-only": args.cells_only}
        faults += [f"{flag} goes with --refiner MODEL" for flag, value in without.items() if value]
    options, log = (
        set_.explicit if (set_ := getattr(args, dest, None)) else {} for dest in ("options", "log")
    )
    if args.method == "net":
        if args.model is None:
            faults.append("detect needs a MODEL before the VOLUME; --method log is the baseline without")
        return faults + (["--sigma-um is for --method log"] if log else [])
    refused = {"MODEL": args.model, "--background": args.background, "--refiner": args.refiner}
    refused |= {f"--{name.replace('_', '-')}": value for name, value in options.items()
                if name not in {*LogOptions.model_fields, "device"}}  # fmt: skip
    for flag, value in refused.items():
        if value is not None:
            shown = "" if value is True else f"; {value!r} was given"
            faults.append(f"--method log takes no {flag}: it needs no model{shown}")
    return faults


def run_detect(args: argparse.Namespace) -> dict:
    from canvas_fm.cli.output import report_bad_chunks_by_path
    from canvas_fm.heads.refine.counts.refined_count import mark_counted
    from canvas_fm.inference.detect.out_of_distribution import unfamiliar_volume_warnings
    from canvas_fm.inference.detect.tiles.tiled_detection import bad_chunks_of, plan, run

    volume = open_volume(args)
    job = _log_job(args, volume) if args.method == "log" else _net_job(args, volume)
    if args.dry_run:
        return plan(job, workers=args.workers)
    if args.refiner is not None:
        return _run_refined(args, volume)
    points = run(job, args.out, workers=args.workers, scheduler=args.scheduler, mark=mark_counted)
    # The points know of every chunk that was passed over, by whichever process and in whichever run.
    skipped = report_bad_chunks_by_path({args.volume: bad_chunks_of(points)})
    warnings = unfamiliar_volume_warnings(job, points)
    for sentence in warnings:
        print(f"canvas-fm: warning: {sentence}", file=sys.stderr)
    result = {"cells": len(points), "written": args.out, **points.meta}
    result |= {"warnings": warnings} if warnings else {}
    result.pop("bad_chunks", None)
    return result | skipped


def _run_refined(args: argparse.Namespace, volume: Volume) -> dict:
    from canvas_fm.cli.output import report_bad_chunks_by_path
    from canvas_fm.data.points.points import P_CELL
    from canvas_fm.heads.refine.refiner import Refiner
    from canvas_fm.inference.detect.tiles.tiled_detection import bad_chunks_of
    from canvas_fm.models.load_model import load
    from canvas_fm.pipeline.detect_refined import detect_refined

    refiner = Refiner.load(args.refiner)
    refiner.set_params(device=args.options.device)
    cells = detect_refined(
        load(args.model, kind="detector"),
        volume,
        refiner,
        args.out,
        encoder=None if args.encoder is None else load(args.encoder, kind="encoder"),
        background=open_background(args, volume),
        cells_only=args.cells_only,
        workers=args.workers,
        scheduler=args.scheduler,
        **args.options.explicit,
    )
    skipped = report_bad_chunks_by_path({args.volume: bad_chunks_of(cells)})
    is_cell = cells.columns[P_CELL].astype("float64") >= refiner.threshold_
    result = {"written": args.out, "rows": len(cells), "cells": int(is_cell.sum()), **cells.meta}
    result.pop("bad_chunks", None)
    return result | skipped


def _net_job(args: argparse.Namespace, volume: Volume) -> TiledDetection:
    from canvas_fm.inference.detect.detect import detector_job
    from canvas_fm.models.load_model import load

    model = load(args.model, kind="detector")
    return detector_job(model, volume, background=open_background(args, volume), **args.options.explicit)


def _log_job(args: argparse.Namespace, volume: Volume) -> TiledDetection:
    from canvas_fm.inference.detect.detect import log_job

    options = args.options.explicit
    options.pop("device", None)
    return log_job(volume, **options, **args.log.explicit)
