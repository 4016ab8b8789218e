"""Verb `brain-report`: one printable page of a brain or a study."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING

from canvas_fm.cli.parser import Parser, Verbs, add_list, add_verb
from canvas_fm.cli.verbs.analysis.regions import add_atlas_flags

if TYPE_CHECKING:
    from canvas_fm.analysis.regions.atlas import Atlas


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "brain-report",
        run_brain_report,
        "one self-contained, printable page of a brain or a study",
        "Write an HTML page from the tables of `regions`, one a brain: counts, densities and intervals, "
        "cells on the atlas' outline in three planes, scores, groups, figures, and what it was made from.",
        fill=_fill,
    )


def _fill(parser: Parser) -> None:
    parser.add_argument("regions", nargs="+", metavar="REGIONS.csv", help="tables that `regions` wrote")
    parser.add_output("--out", required=True, metavar="REPORT.html", help="page to write")
    parser.add_argument(
        "--title", default="Cells per region", metavar="TEXT", help="default: Cells per region"
    )
    add_list(parser, "--names", "NAME", "of the brains; default: those of the files")
    parser.add_argument(
        "--cells", nargs="+", default=[], metavar="CELLS.csv",
        help="of `regions --cells-out`, one for each REGIONS.csv; drawn with --atlas",
    )  # fmt: skip
    parser.add_argument(
        "--atlas", nargs="+", default=[], metavar="ATLAS",
        help="the atlas of the outlines, one for all or one for each; see `regions --help`",
    )  # fmt: skip
    add_list(parser, "--models", "MODEL", "detectors and refiners: identity and scores")
    add_list(parser, "--scores", "REPORT.json", "of `evaluate --out`")
    parser.add_argument("--groups", metavar="GROUPS.csv", help="table that `groups` wrote")
    add_list(parser, "--figures", "FIG.png", "figures to show")
    add_atlas_flags(parser)


def run_brain_report(args: argparse.Namespace) -> dict:
    from canvas_fm.viewing.brain_report.report import brain_report

    written = brain_report(
        args.regions,
        args.out,
        title=args.title,
        names=args.names,
        atlases=_atlases(args) if args.atlas else None,
        cells=args.cells,
        scores=args.scores,
        models=args.models,
        groups=args.groups,
        figures=args.figures,
    )
    return {"written": str(written)}


def _atlases(args: argparse.Namespace) -> Iterator[Atlas]:
    """The atlas of each table in turn, opened when it is drawn."""
    from canvas_fm.errors import CanvasError

    if len(args.atlas) not in (1, len(args.regions)):
        raise CanvasError(
            f"{len(args.atlas)} atlases and {len(args.regions)} tables of regions; "
            "expected one, or one for each"
        )
    if len(args.atlas) == 1:
        yield from repeat(args.atlas_options.open(args.atlas[0]), len(args.regions))
    else:
        yield from (args.atlas_options.open(atlas) for atlas in args.atlas)
