"""The command line: each verb parses its arguments, calls the library and prints the result.

Results go to stdout, progress and logs to stderr. A caller's mistake is one line and exit code 1, a wrong
flag is exit code 2, an interruption 130. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import argparse
import codecs
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from canvas_fm.cli.parser import Parser, add_logging
from canvas_fm.cli.verbs import demo, serve
from canvas_fm.cli.verbs.analysis import brain_report, groups, profiles, regions, segmentation, spatial, study
from canvas_fm.cli.verbs.cells import count, detect, embed, refine, review, search
from canvas_fm.cli.verbs.data import dataset, info, points, prepare, view
from canvas_fm.cli.verbs.score import audit, feature_benchmark, leaderboard, probe, report, score
from canvas_fm.cli.verbs.train import (
    adapt,
    domains,
    export_onnx,
    pretrain,
    push,
    quantise,
    sweep,
    train_detector,
)
from canvas_fm.errors import CanvasError
from canvas_fm.models.allocator import keep_freed_memory
from canvas_fm.version import __version__

_PLAIN = {"µ": "u", "…": "...", "–": "-", "—": "-", "→": "->", "×": "x", "Δ": "d", "²": "2", "γ": "gamma"}


def build_parser() -> Parser:
    """Build the parser of `canvas-fm`; each verb stores its function in `run`."""
    parser = Parser(
        prog="canvas-fm",
        description="A foundation-model toolkit for whole-brain light-sheet microscopy. "
        "Order is always z y x.",
        epilog="A MODEL is a folder, else the name of a shipped model, hf://owner/name or "
        "https://host/model.zip#sha256=HEX; a RECIPE is a file, else a "
        "shipped name: `canvas-fm list` has them. `canvas-fm VERB --help` tells the rest; `canvas-fm demo` "
        "shows everything on a synthetic brain.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"canvas-fm {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=["bash", "zsh", "tcsh"],
        help='completion of this command line for a shell: eval "$(canvas-fm --print-completion bash)"',
    )
    add_logging(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module in (
        info,
        dataset,
        prepare,
        pretrain,
        embed,
        quantise,
        export_onnx,
        push,
        detect,
        train_detector,
        adapt,
        domains,
        refine,
        review,
        count,
        regions,
        spatial,
        segmentation,
        groups,
        profiles,
        brain_report,
        study,
        probe,
        report,
        score,
        audit,
        leaderboard,
        points,
        view,
        search,
        feature_benchmark,
        serve,
        sweep,
        demo,
    ):
        module.add_verbs(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _degrade_output_encoding()
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words or ["--help"])
    _log_to_stderr(args)
    if args.verb != "serve":  # which runs for weeks, and gives its memory back between requests
        keep_freed_memory()
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


class _Completion(argparse.Action):
    """Action that prints the shell completion script and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        import shtab

        assert isinstance(parser, Parser)
        print(shtab.complete(parser.filled_through(), shell=str(args[1])))
        parser.exit(0)


def _say(sentence: str, code: int) -> int:
    print(f"canvas-fm: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _degrade_output_encoding() -> None:
    """Degrade output on ASCII or Latin-1 terminals: `um` for µm, `?` otherwise; no traceback."""

    def plainly(problem: UnicodeError) -> tuple[str, int]:
        assert isinstance(problem, UnicodeEncodeError)
        text = problem.object[problem.start : problem.end]
        return "".join(_PLAIN.get(letter, "?") for letter in text), problem.end

    codecs.register_error("plainly", plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="plainly")


def _log_to_stderr(args: argparse.Namespace) -> None:
    """Log this package's messages as single lines on stderr; of libraries only errors.

    `--quiet` leaves warnings and errors, without progress; `--verbose` adds what is for debugging.
    """
    level = logging.INFO
    if getattr(args, "quiet", False):
        level = logging.WARNING
    elif getattr(args, "verbose", False):
        level = logging.DEBUG
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.ERROR, stream=sys.stderr)
    if (path := getattr(args, "log_file", None)) is not None:
        to_file = logging.FileHandler(path, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logging.getLogger().addHandler(to_file)
    for ours in ("canvas_fm", "serving"):
        logging.getLogger(ours).setLevel(level)

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        if issubclass(category, UserWarning):
            print(f"canvas-fm: warning: {message}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
