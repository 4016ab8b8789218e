"""`detect` and `train-detector`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from canvas_fm.cli.options import (
    ZYX,
    Verbs,
    add_device,
    add_json,
    add_precision,
    add_verb,
    add_volume_flags,
    add_voxel_size_flags,
    positive_float,
    positive_int,
)
from canvas_fm.cli.training import add_training_flags, held_out
from canvas_fm.errors import CanvasError

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.inference.detect.detection_job import Job

REGION = ("Z0", "Y0", "X0", "Z1", "Y1", "X1")


def add_verbs(verbs: Verbs) -> None:
    _add_detect(verbs)
    _add_train_detector(verbs)


def _add_detect(verbs: Verbs) -> None:
    detect = add_verb(
        verbs,
        "detect",
        run_detect,
        "find the cells of a volume",
        "Find cells and write z, y, x and score, one row a cell. Memory goes by tiles, not by the volume; "
        "the same command again goes on where it stopped. Without --threshold: exactly the rows at or above "
        "the operating threshold that the model holds; a low one gives candidates to refine.",
    )
    detect.add_argument(
        "detector", metavar="DETECTOR", nargs="?", help="a detector's folder, or the name of a shipped one"
    )
    detect.add_argument("volume", metavar="VOLUME")
    detect.add_argument("--out", metavar="CELLS", help="file to write: .csv or .parquet")
    detect.add_argument(
        "--method",
        choices=["net", "log"],
        default="net",
        help="net: the trained DETECTOR; log: the Laplacian of a Gaussian, a baseline that takes no DETECTOR",
    )
    detect.add_argument("--threshold", type=float, metavar="T", help="default: the model's; for log 0.2")
    detect.add_argument(
        "--min-distance-um",
        type=positive_float,
        metavar="D",
        help="of two nearer than this only the better is a cell; default: the model's; for log 10",
    )
    detect.add_argument(
        "--sigma-um", type=positive_float, metavar="S", help="of the Gaussian of log; default 5"
    )
    detect.add_argument("--background", metavar="VOLUME", help="the second channel of a model that takes one")
    detect.add_argument(
        "--region", nargs=6, type=int, metavar=REGION, help="only this box, in voxels of level 0"
    )
    detect.add_argument("--subvoxel", action="store_true", help="positions between voxels, by a parabola")
    detect.add_argument(
        "--tile", nargs=3, type=positive_int, metavar=ZYX, help="voxels of a tile; default 64 384 384"
    )
    add_precision(detect)
    detect.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes; default 1")
    detect.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://host:8786")
    detect.add_argument(
        "--dry-run", action="store_true", help="only say how many tiles, minutes and bytes it would take"
    )
    add_device(detect)
    add_voxel_size_flags(detect)
    add_json(detect)
    add_volume_flags(detect)


def _add_train_detector(verbs: Verbs) -> None:
    train = add_verb(
        verbs,
        "train-detector",
        run_train_detector,
        "train a detector on volumes and their cells",
        "Train a heat-map detector on volumes and the cells in them. RUN then holds recipe.yaml as resolved, "
        "metrics.jsonl, figures/, last.pt and detector/, whose operating threshold is calibrated over all "
        "training volumes.",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    train.add_argument(
        "--volumes", nargs="+", default=[], metavar="VOLUME",
        help="one or more volumes; none where the recipe trains on phantoms alone",
    )  # fmt: skip
    train.add_argument(
        "--points", nargs="+", default=[], metavar="FILE", help="their cells, one file a volume, in order"
    )
    train.add_argument(
        "--within",
        nargs="+",
        metavar="FILE",
        help="boxes in which all cells are labelled, one file a volume: a JSON list of [z0, y0, x0, z1, y1, "
        "x1], or a meta.json with octants; default: everywhere",
    )
    train.add_argument("--masks", nargs="+", metavar="VOLUME", help="their masks, for target.kind masks")
    train.add_argument(
        "--background", nargs="+", metavar="VOLUME", help="their second channel, for model.channels 2"
    )
    train.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    add_training_flags(train)


def run_detect(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import open_volume, print_result, say_bad_chunks
    from canvas_fm.inference.detect.detection_job import bad_chunks_of, plan, run
    from canvas_fm.inference.detect.likeness import unlike

    if args.out is None and not args.dry_run:
        raise CanvasError("detect needs --out CELLS.csv (or .parquet), the file to write; or --dry-run")
    volume = open_volume(args.volume, args)
    job = _log_job(args, volume) if args.method == "log" else _net_job(args, volume)
    if args.dry_run:
        print_result(plan(job, workers=args.workers), args.json)
        return
    points = run(job, args.out, workers=args.workers, scheduler=args.scheduler)
    # The points know of every chunk that was passed over, by whichever process and in whichever run.
    skipped = say_bad_chunks({args.volume: bad_chunks_of(points)})
    warnings = unlike(job, points)
    for sentence in warnings:
        print(f"canvas-fm: warning: {sentence}", file=sys.stderr)
    result = {"cells": len(points), "written": args.out, **points.meta}
    result |= {"warnings": warnings} if warnings else {}
    result.pop("bad_chunks", None)
    print_result(result, args.json, bad_chunks=skipped)


def _net_job(args: argparse.Namespace, volume: Volume) -> Job:
    from canvas_fm.cli.options import open_volume
    from canvas_fm.inference.detect.detect import TILE_ZYX, detector_job
    from canvas_fm.models.checkpoint import load

    if args.detector is None:
        raise CanvasError("detect needs a DETECTOR before the VOLUME; --method log is the baseline without")
    if args.sigma_um is not None:
        raise CanvasError("--sigma-um is for --method log")
    return detector_job(
        load(args.detector, kind="detector"),
        volume,
        background=None if args.background is None else open_volume(args.background, args),
        threshold=args.threshold,
        min_distance_um=args.min_distance_um,
        region=args.region,
        subvoxel=args.subvoxel,
        tile_zyx=TILE_ZYX if args.tile is None else tuple(args.tile),
        device=args.device,
        precision=args.precision,
        resample=args.resample,
        ignore_voxel_size=args.ignore_voxel_size,
    )


def _log_job(args: argparse.Namespace, volume: Volume) -> Job:
    from canvas_fm.inference.detect.detect import TILE_ZYX, log_job

    precision = None if args.precision == "fp32" else args.precision
    for flag, given in (
        ("DETECTOR", args.detector),
        ("--background", args.background),
        ("--resample", args.resample or None),
        ("--ignore-voxel-size", args.ignore_voxel_size or None),
        ("--precision", precision),
    ):
        if given is not None:
            shown = "" if given is True else f"; {given!r} was given"
            raise CanvasError(f"--method log takes no {flag}: it needs no model{shown}")
    settings = {
        "sigma_um": args.sigma_um,
        "threshold": args.threshold,
        "min_distance_um": args.min_distance_um,
    }
    return log_job(
        volume,
        region=args.region,
        subvoxel=args.subvoxel,
        tile_zyx=TILE_ZYX if args.tile is None else tuple(args.tile),
        **{name: value for name, value in settings.items() if value is not None},
    )


def run_train_detector(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import open_volume, print_result, report_bad_chunks
    from canvas_fm.training.detector.train import train_detector
    from canvas_fm.viewing.describe import describe_run

    volumes = [open_volume(path, args) for path in args.volumes]
    run = train_detector(
        args.recipe,
        volumes,
        args.points,
        out=args.out,
        masks=args.masks,
        within=args.within,
        background=args.background,
        resume=args.resume,
        device=args.device,
        seed=args.seed,
        overrides=args.overrides,
        held_out=held_out(args.held_out),
        resample_to=None if args.resample is None else tuple(args.resample),
        ignore_voxel_size=args.ignore_voxel_size,
    )
    skipped = report_bad_chunks(volumes)
    print_result(describe_run(run.path), args.json, bad_chunks=skipped)
