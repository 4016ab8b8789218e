"""Verb `review`: candidates labelled by people, on a page of this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from canvas_fm.cli.open_volumes import open_volume
from canvas_fm.cli.parser import Parser, Verbs, add_verb, add_volume_flags
from canvas_fm.errors import counted


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "review",
        run_review,
        "label candidates by eye, on a page in the browser",
        "Serve a page on this machine that shows one candidate after the other, until Ctrl-C. Every answer "
        "is on the disk at once, and the same command again resumes. OUT is what `refine fit --labels label` "
        "takes.",
        fill=_fill,
        json=False,
    )


def _fill(parser: Parser) -> None:
    from canvas_fm.heads.review.review_flags import ReviewOptions

    parser.add_argument("volume", metavar="VOLUME")
    parser.add_argument("candidates", metavar="CANDIDATES", help="the detections, in any format of points")
    parser.add_argument(
        "--out", default="labels.csv", metavar="LABELS.csv", help="labels to write; default labels.csv"
    )
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="port of the page; default a free one"
    )
    parser.add_options("review", ReviewOptions)
    add_volume_flags(parser)


def run_review(args: argparse.Namespace) -> None:
    from canvas_fm.cli.output import report_step

    report_step(f"opening {args.volume} and {args.candidates}; the page's link follows")
    # Imports take seconds: the line above comes before them.
    from canvas_fm.data.points.points import Points

    volume = open_volume(args)
    candidates = Points.read(args.candidates)
    report_step(f"starting the page of {counted(len(candidates), 'candidate')}")
    from canvas_fm.pipeline.adapt_to_answers import adapted_folder
    from serving.launch.review import serve_review

    def announce(name: str, link: str) -> None:
        print(f"canvas-fm: {name} reviews at {link}", file=sys.stderr, flush=True)

    serve_review(volume, candidates, args.out, args.review, port=args.port, announce=announce)
    if args.review.adapt is not None and adapted_folder(Path(args.out)).is_dir():
        folder = adapted_folder(Path(args.out))
        print(f"canvas-fm: the adapted detector is in {folder}; canvas-fm detect {folder} …", file=sys.stderr)
    print(
        f"canvas-fm: labels are in {args.out}; learn from them: canvas-fm refine fit --volumes {args.volume} "
        f"--candidates {args.out} --labels label --shape --force-random-split --out refiner",
        file=sys.stderr,
    )
