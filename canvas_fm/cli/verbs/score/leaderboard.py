"""Verb `leaderboard`: submissions checked, added, scored and shown."""

from __future__ import annotations

import argparse
from typing import Any

from canvas_fm.cli.parser import Parser, Verbs, add_group, add_switch, add_verb

BOARD_HELP = "the leaderboard's folder, with benchmark.yaml"


def add_verbs(verbs: Verbs) -> None:
    group = add_group(
        verbs,
        "leaderboard",
        "check, take, score and show submissions",
        "Keep a folder of submissions (card.yaml and cells/REGION.csv each), score them against truth that "
        "is stored elsewhere and never copied out, and write a static page.",
    )
    add_verb(group, "validate", run_validate, "tell every fault of a submission", fill=_fill_submission)
    add_verb(group, "submit", run_submit, "check a submission and copy it into the board", fill=_fill_submit)
    add_verb(group, "score", run_score, "score the submissions and write the page", fill=_fill_score)
    add_verb(
        group, "page", run_page, "write the page from the stored scores; needs no truth", fill=_fill_page
    )


def _fill_submission(parser: Parser) -> None:
    parser.add_argument("board", metavar="BOARD", help=BOARD_HELP)
    parser.add_argument("submission", metavar="SUBMISSION", help="folder with card.yaml and cells/")


def _fill_submit(submit: Parser) -> None:
    _fill_submission(submit)
    submit.add_argument("--name", metavar="NAME", help="a-z, 0-9, '.', '_', '-'; default: the folder's name")
    add_switch(submit, "--overwrite", "replace the submission of that name")


def _fill_score(score: Parser) -> None:
    score.add_argument("board", metavar="BOARD", help=BOARD_HELP)
    score.add_argument(
        "--truth", required=True, metavar="TRUTH", help="folder with REGION.csv, outside BOARD"
    )
    score.add_argument("--only", metavar="NAME", help="one submission")
    add_switch(score, "--check", "store nothing; fail where the stored scores do not come out again")


def _fill_page(page: Parser) -> None:
    page.add_argument("board", metavar="BOARD", help=BOARD_HELP)
    page.add_output("--out", metavar="FILE.html", help="default: BOARD/index.html")


def run_validate(args: argparse.Namespace) -> None:
    from canvas_fm.cli.output import print_result
    from canvas_fm.errors import CanvasError, counted
    from canvas_fm.evaluation.leaderboard.submission import check_submission

    submission, faults = check_submission(args.submission, args.board)
    if args.json:
        print_result({"submission": args.submission, "sound": submission is not None, "faults": faults}, True)
    else:
        for fault in faults:
            print(fault)
    if submission is None:
        raise CanvasError(f"{args.submission}: {counted(len(faults), 'fault')}, listed above")
    if not args.json:
        print(f"{args.submission} is sound: {counted(len(submission.cells), 'region')}")


def run_submit(args: argparse.Namespace) -> dict:
    from canvas_fm.evaluation.leaderboard.score_submissions import submit

    target = submit(args.submission, args.board, name=args.name, replace=args.overwrite)
    return {"submitted": str(target)}


def run_score(args: argparse.Namespace) -> dict:
    import sys

    from canvas_fm.evaluation.leaderboard.score_submissions import score_board, write_page

    passed_over: dict[str, list[str]] = {}
    done = score_board(
        args.board, args.truth, only=args.only, check=args.check, report=passed_over.__setitem__
    )
    for name, faults in passed_over.items():
        print(f"canvas-fm: warning: {name} was passed over:", file=sys.stderr)
        for fault in faults:
            print(f"  {fault}", file=sys.stderr)
    result: dict[str, Any] = {"came out again" if args.check else "scored": done, "passed_over": passed_over}
    if not args.check:
        result["page"] = str(write_page(args.board))
    return result


def run_page(args: argparse.Namespace) -> dict:
    from canvas_fm.evaluation.leaderboard.score_submissions import write_page

    return {"page": str(write_page(args.board, args.out))}
