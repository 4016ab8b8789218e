"""Flags of labelled candidates, shared by `refine fit`, `report` and `quantise`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from canvas_fm.cli.parser import Parser, add_roi, positive_float

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.heads.labels.candidates import Candidates


def add_labelled(
    parser: Parser,
    *,
    truth_needed: bool = False,
    volumes: str = "one or more volumes",
    truth: str = "the true cells, one file a volume; with --labels they only say how many have no candidate",
    roi: str = "candidates outside are skipped",
) -> None:
    """Add the flags of volumes, candidates and their labels; with help texts of their own where given."""
    parser.add_argument("--volumes", nargs="+", required=True, metavar="VOLUME", help=volumes)
    parser.add_argument(
        "--candidates",
        nargs="+",
        required=True,
        metavar="FILE",
        help="their candidates, one file a volume, in order",
    )
    parser.add_argument(
        "--labels", metavar="COLUMN", help="column of the candidates: 1 a cell, 0 none, -1 skipped"
    )
    parser.add_argument("--truth", nargs="+", required=truth_needed, metavar="FILE", help=truth)
    parser.add_argument(
        "--tolerance-um",
        type=positive_float,
        required=truth_needed,
        metavar="N",
        help="farthest match with a true cell in µm",
    )
    add_roi(parser, "boxes in which everything is labelled", several=True, note=roi)


def labelled(
    args: argparse.Namespace,
    volumes: list[Volume],
    background: list[Volume] | None = None,
    score: str | None = None,
) -> list[Candidates]:
    """Read the labelled candidates named by the flags of `add_labelled`."""
    from canvas_fm.heads.labels.candidates import label_brains

    return label_brains(
        volumes,
        args.candidates,
        labels=args.labels,
        truth=args.truth,
        tolerance_um=args.tolerance_um,
        within=args.roi,
        score=score,
        background=background,
    )
