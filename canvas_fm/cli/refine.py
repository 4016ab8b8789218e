"""`refine fit` and `refine apply`."""

from __future__ import annotations

import argparse
from typing import Any

from canvas_fm.cli.options import Verbs, add_verb
from canvas_fm.cli.refine_fit import add_fit, add_running, running


def add_verbs(verbs: Verbs) -> None:
    group = verbs.add_parser(
        "refine",
        help="tell true from false detections",
        description="Learn from labelled candidates which are cells, and judge the candidates of other "
        "volumes, whatever detector they are from.",
        allow_abbrev=False,
    ).add_subparsers(dest="action", metavar="ACTION", required=True)
    add_fit(group)
    _add_apply(group)


def _add_apply(group: Verbs) -> None:
    apply = add_verb(
        group,
        "apply",
        run_apply,
        "P(cell) for every candidate of a volume",
        "Write every row of CANDIDATES once, in its order, with all its columns and p_cell. The same command "
        "again goes on where it stopped. The refiner's encoder and detector are found among the shipped "
        "models by their sha256, else given.",
    )
    apply.add_argument("refiner", metavar="REFINER", help="a refiner's folder, or the name of a shipped one")
    apply.add_argument("volume", metavar="VOLUME")
    apply.add_argument(
        "candidates",
        metavar="CANDIDATES",
        help="CSV or Parquet; only z, y, x are needed, "
        "and the score where the refiner was fitted with --own-score",
    )
    apply.add_argument("--out", required=True, metavar="CELLS", help="file to write: .csv or .parquet")
    apply.add_argument("--encoder", metavar="MODEL", help="the refiner's encoder, where it is not shipped")
    apply.add_argument("--detector", metavar="MODEL", help="the refiner's detector, where it is not shipped")
    apply.add_argument("--background", metavar="VOLUME", help="second channel of a detector that takes one")
    apply.add_argument(
        "--regions", metavar="COLUMN", help="also count cells by the values of this column, with intervals"
    )
    add_running(apply)


def run_apply(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import open_volume, print_result, report_bad_chunks
    from canvas_fm.data.points.points import Points
    from canvas_fm.errors import CanvasError
    from canvas_fm.heads.refine.apply import P_CELL, refine
    from canvas_fm.heads.refine.calibration import counts_by_region
    from canvas_fm.heads.refine.refiner import Refiner
    from canvas_fm.models.checkpoint import load

    refiner = Refiner.load(args.refiner)
    refiner.set_params(device=args.device)
    volume = open_volume(args.volume, args)
    background = None if args.background is None else open_volume(args.background, args)
    points = Points.read(args.candidates)
    if args.regions is not None and args.regions not in points.columns:
        found = ", ".join(points.columns) or "none"
        raise CanvasError(f"{args.candidates} has no column {args.regions!r} to count by; found {found}")
    judged = refine(
        refiner,
        volume,
        points,
        encoder=None if args.encoder is None else load(args.encoder, kind="encoder"),
        detector=None if args.detector is None else load(args.detector, kind="detector"),
        background=background,
        out=args.out,
        **running(args),
    )
    skipped = report_bad_chunks([volume] if background is None else [volume, background])
    p_cell = judged.columns[P_CELL].astype("float64")
    count = refiner.count(p_cell)
    result: dict[str, Any] = {
        "written": args.out,
        "candidates": len(judged),
        "cells": int((p_cell >= refiner.threshold_).sum()),
        "threshold": refiner.threshold_,
        "expected_cells": count.value,
        "interval_90": [count.low, count.high],
    }
    if args.regions is not None:
        by_region = counts_by_region(p_cell, judged.columns[args.regions], refiner.count_spread_)
        result["regions"] = [{"region": name, **found._asdict()} for name, found in by_region.items()]
    print_result(result, args.json, bad_chunks=skipped)
