"""`leaderboard`: submissions checked, taken, scored and shown."""

from __future__ import annotations

import argparse
from typing import Any

from canvas_fm.cli.options import Verbs, add_json, add_verb

BOARD_HELP = "the leaderboard's folder, with benchmark.yaml"


def add_verbs(verbs: Verbs) -> None:
    group = verbs.add_parser(
        "leaderboard",
        help="check, take, score and show submissions",
        description="Keep a folder of submissions (card.yaml and cells/REGION.csv each), score them against "
        "truth that lies elsewhere and is never copied out, and write a static page.",
        allow_abbrev=False,
    ).add_subparsers(dest="action", metavar="ACTION", required=True)

    validate = add_verb(group, "validate", run_validate, "tell every fault of a submission")
    validate.add_argument("submission", metavar="SUBMISSION", help="folder with card.yaml and cells/")
    validate.add_argument("--board", required=True, metavar="BOARD", help=BOARD_HELP)
    add_json(validate)

    submit = add_verb(group, "submit", run_submit, "check a submission and copy it into the board")
    submit.add_argument("submission", metavar="SUBMISSION", help="folder with card.yaml and cells/")
    submit.add_argument("--board", required=True, metavar="BOARD", help=BOARD_HELP)
    submit.add_argument("--name", metavar="NAME", help="a-z, 0-9, '.', '_', '-'; default: the folder's name")
    submit.add_argument("--replace", action="store_true", help="in place of the submission of that name")
    add_json(submit)

    score = add_verb(group, "score", run_score, "score the submissions and write the page")
    score.add_argument("board", metavar="BOARD", help=BOARD_HELP)
    score.add_argument(
        "--truth", required=True, metavar="TRUTH", help="folder with REGION.csv, outside BOARD"
    )
    score.add_argument("--only", metavar="NAME", help="one submission")
    score.add_argument(
        "--check",
        action="store_true",
        help="store nothing; fail where the stored scores do not come out again",
    )
    add_json(score)

    page = add_verb(group, "page", run_page, "write the page from the stored scores; needs no truth")
    page.add_argument("board", metavar="BOARD", help=BOARD_HELP)
    page.add_argument("--out", metavar="FILE.html", help="default: BOARD/index.html")
    add_json(page)


def run_validate(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import print_result
    from canvas_fm.errors import CanvasError
    from canvas_fm.evaluation.leaderboard.submission import check_submission

    submission, faults = check_submission(args.submission, args.board)
    if args.json:
        print_result({"submission": args.submission, "sound": submission is not None, "faults": faults}, True)
    else:
        for fault in faults:
            print(fault)
    if submission is None:
        raise CanvasError(f"{args.submission}: {len(faults)} faults, listed above")
    if not args.json:
        print(f"{args.submission} is sound: {len(submission.cells)} regions")


def run_submit(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import print_result
    from canvas_fm.evaluation.leaderboard.leaderboard import submit

    target = submit(args.submission, args.board, name=args.name, replace=args.replace)
    print_result({"submitted": str(target)}, args.json)


def run_score(args: argparse.Namespace) -> None:
    import sys

    from canvas_fm.cli.options import print_result
    from canvas_fm.evaluation.leaderboard.leaderboard import score_board, write_page

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
    print_result(result, args.json)


def run_page(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import print_result
    from canvas_fm.evaluation.leaderboard.leaderboard import write_page

    print_result({"page": str(write_page(args.board, args.out))}, args.json)
