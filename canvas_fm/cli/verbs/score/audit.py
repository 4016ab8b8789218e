"""Verb `audit`: precision, recall and corrected count from a random sample that a person answers."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from canvas_fm.cli.open_volumes import open_volume
from canvas_fm.cli.parser import Parser, Verbs, add_roi, add_switch, add_verb, add_volume_flags
from canvas_fm.errors import counted

if TYPE_CHECKING:
    from canvas_fm.heads.review.audit.estimate import Audit


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "audit",
        run_audit,
        "precision, recall and corrected count from a random sample",
        "Draw a stratified random sample of the detections in CELLS and of boxes of the volume into a table "
        "(--out), to be answered by a person in its column answer; then estimate precision, recall and the "
        "corrected count, each with a 90 % interval, from the answered table (--labels).",
        fill=_fill,
        check=_faults,
    )


def _fill(parser: Parser) -> None:
    from canvas_fm.heads.review.audit.audit_flags import AuditOptions

    parser.add_argument("volume", metavar="VOLUME")
    parser.add_argument("cells", metavar="CELLS", help="the detections, in any format of points")
    parser.add_argument("--out", metavar="AUDIT.csv", help="draw the sample and write it here")
    parser.add_argument("--labels", metavar="AUDIT.csv", help="the answered table; prints the estimates")
    add_switch(
        parser,
        "--page",
        "with --labels: answer on a page of this machine, until Ctrl-C; then print the estimates",
    )
    add_switch(parser, "--overwrite", "replace --out where it is there already")
    add_roi(parser, "boxes to audit")
    parser.add_options("audit", AuditOptions, title="the sample")
    add_volume_flags(parser)


def _faults(args: argparse.Namespace) -> list[str]:
    if (args.out is None) == (args.labels is None):
        return ["give --out AUDIT.csv to draw a sample, or --labels AUDIT.csv once it is answered"]
    if args.page and args.labels is None:
        return ["--page answers a table that is there already; draw it with --out, then give it as --labels"]
    if args.labels is not None and args.audit.explicit:
        return ["the options of the sample go with --out; with --labels the table says how it was drawn"]
    return []


def run_audit(args: argparse.Namespace) -> dict:
    from canvas_fm.data.points.points import Points
    from canvas_fm.heads.labels.candidates import check_volume_name
    from canvas_fm.heads.review.audit.answers import audit_of

    volume = open_volume(args)
    cells = Points.read(args.cells, allow_empty=False)
    check_volume_name(cells, volume.name, args.cells)
    cells.check_inside(volume.shape_zyx)
    if args.out is not None:
        return _draw(args, volume, cells)
    if args.page:
        _answer(args, volume, cells)
    audit = audit_of(Points.read(args.labels), cells, source=args.labels)
    return audit.as_dict() if args.json else _for_people(audit)


def _answer(args: argparse.Namespace, volume: Any, cells: Any) -> None:
    """Serve the page until it is ended; the table then has the answers."""
    from canvas_fm.cli.output import report_step
    from canvas_fm.data.points.points import Points

    report_step(f"starting the page of {args.labels}; its link follows")
    from serving.launch.review import serve_audit

    def announce(name: str, link: str) -> None:
        print(f"canvas-fm: audit at {link}", file=sys.stderr, flush=True)

    serve_audit(volume, Points.read(args.labels), cells, args.labels, announce=announce)


def _draw(args: argparse.Namespace, volume: Any, cells: Any) -> dict[str, Any]:
    from pathlib import Path

    from canvas_fm.data.points.boxes import read_boxes
    from canvas_fm.errors import CanvasError
    from canvas_fm.heads.review.audit.sample import BOX, KIND, draw_audit

    out = Path(args.out)
    if out.suffix.lower() != ".csv":
        raise CanvasError(f"{out}: the table of an audit is a .csv, to be answered in any spreadsheet")
    if out.exists() and not args.overwrite:
        raise CanvasError(
            f"{out} is there already, perhaps with answers; give another --out, or --overwrite to replace it"
        )
    within = None if args.roi is None else read_boxes(args.roi)
    table = draw_audit(cells, volume.shape_zyx, volume.voxel_um, args.audit, within=within)
    table.write(out)
    boxes = int((table.columns[KIND] == BOX).sum())
    return {
        "written": str(out),
        "detections": len(table) - boxes,
        "boxes": boxes,
        "next": "fill the column answer: for a detection 1 (a cell), 0 (none) or -1 (unsure); for a box how "
        f"many cells in it have no detection. Then: canvas-fm audit VOLUME CELLS --labels {out}",
    }


def _for_people(audit: Audit) -> dict[str, Any]:
    """Estimates as lines with their intervals."""
    lines: dict[str, Any] = {
        "detections": f"{audit.detections:,}, {audit.answered:,} of them answered"
        f"; {counted(audit.boxes, 'box')} searched"
    }
    for name, label, digits in (
        ("precision", "precision", 3),
        ("recall", "recall", 3),
        ("cells", "cells", 0),
        ("true", "detections that are cells", 0),
        ("missed", "cells without a detection", 0),
    ):
        estimate = getattr(audit, name)
        if estimate is not None:
            value, low, high = (f"{number:,.{digits}f}" for number in estimate)
            lines[label] = f"{value}   {low} to {high}"
    if audit.f1 is not None:
        lines["F1"] = f"{audit.f1:.3f}"
    else:
        lines["recall"] = "unknown: no boxes were searched"
    lines["intervals"] = "90 %, of the sample; the answers are taken to be right"
    if audit.notes:
        lines["notes"] = "; ".join(audit.notes)
    return lines
