"""The command line: each verb parses, calls one public function and prints its result.

Results go to stdout, progress and logs to stderr. A caller's mistake is one line and exit code 1, a wrong
flag is exit code 2, an interruption 130. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from canvas_fm.cli import (
    data,
    demo,
    detect,
    domains,
    inference,
    leaderboard,
    points,
    probe,
    quantise,
    refine,
    report,
    score,
    search,
    serve,
    training,
    worth,
)
from canvas_fm.errors import CanvasError
from canvas_fm.version import __version__


def build_parser() -> argparse.ArgumentParser:
    """The parser of `canvas-fm`; each verb leaves its function in `run`."""
    parser = argparse.ArgumentParser(
        prog="canvas-fm",
        description="A foundation-model toolkit for whole-brain light-sheet microscopy. "
        "Order is always z y x.",
        epilog="A MODEL is a folder, else the name of a shipped model; a RECIPE is a file, else a "
        "shipped name. `canvas-fm VERB --help` tells the rest; `canvas-fm demo` shows everything on a "
        "synthetic brain.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"canvas-fm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module in (
        data,
        training,
        inference,
        quantise,
        detect,
        domains,
        refine,
        probe,
        report,
        score,
        leaderboard,
        points,
        search,
        worth,
        serve,
        demo,
    ):
        module.add_verbs(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse_args(argv)
    _logs_to_stderr()
    try:
        args.run(args)
    except CanvasError as problem:
        return _say(str(problem), 1)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # `canvas-fm info … | head` has read what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as problem:  # what the file system refuses: permissions, a folder where a file is due
        where = f": {problem.filename}" if problem.filename else ""
        return _say(f"{problem.strerror or problem}{where}", 1)
    return 0


def _say(sentence: str, code: int) -> int:
    print(f"canvas-fm: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _logs_to_stderr() -> None:
    """Logs and warnings of this package as one line each; those of libraries only when they are errors."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.ERROR, stream=sys.stderr)
    for ours in ("canvas_fm", "serving"):
        logging.getLogger(ours).setLevel(logging.INFO)

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        if issubclass(category, UserWarning):
            print(f"canvas-fm: warning: {message}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
