"""The command line: each verb parses its arguments, calls the library and prints the result.

Results go to stdout, progress and logs to stderr. A caller's mistake is one line and exit code 1, a wrong
flag is exit code 2, an interruption 130. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import argparse
import codecs
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from canvas_fm.cli.output import print_result
from canvas_fm.cli.parser import Parser, add_logging
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import removed_on_error
from canvas_fm.files.system_errors import explain, system_error
from canvas_fm.models.allocator import keep_freed_memory
from canvas_fm.version import __version__

_PLAIN = {"µ": "u", "…": "...", "–": "-", "—": "-", "→": "->", "×": "x", "Δ": "d", "²": "2", "γ": "gamma"}


# Files of verbs in the order of --help, and the verbs that each adds.
VERB_FILES: dict[str, tuple[str, ...]] = {
    "data.info": ("info", "list", "phantom"),
    "data.dataset": ("dataset",),
    "data.prepare": ("convert", "destripe", "stitch"),
    "train.pretrain": ("pretrain",),
    "cells.embed": ("embed", "export", "reconstruct"),
    "train.quantise": ("quantise",),
    "train.export_onnx": ("export-onnx",),
    "train.push": ("push",),
    "cells.detect": ("detect",),
    "train.train_detector": ("train-detector",),
    "train.adapt": ("adapt",),
    "train.domains": ("domains",),
    "cells.refine": ("refine",),
    "cells.review": ("review",),
    "cells.count": ("count",),
    "analysis.regions": ("regions",),
    "analysis.spatial": ("coexpress", "proximity"),
    "analysis.segmentation": ("segment", "evaluate-segmentation"),
    "analysis.groups": ("groups",),
    "analysis.profiles": ("profiles",),
    "analysis.brain_report": ("brain-report",),
    "analysis.study": ("study",),
    "score.probe": ("probe",),
    "score.report": ("report",),
    "score.score": ("evaluate", "tables"),
    "score.audit": ("audit",),
    "score.leaderboard": ("leaderboard",),
    "data.points": ("points",),
    "data.view": ("view",),
    "cells.search": ("index", "search"),
    "score.feature_benchmark": ("feature-benchmark",),
    "serve": ("serve", "store"),
    "train.sweep": ("sweep",),
    "demo": ("demo",),
}


def build_parser(verb: str | None = None) -> Parser:
    """Build the parser of `canvas-fm`, or of one verb alone; each verb stores its function in `run`."""
    parser = Parser(
        prog="canvas-fm",
        description="A foundation-model toolkit for whole-brain light-sheet microscopy. "
        "Order is always z y x.",
        epilog="A MODEL is a folder, else the name of a shipped model, hf://owner/name or "
        "https://host/model.zip#sha256=HEX; a RECIPE is a file, else a "
        "shipped name: `canvas-fm list` has them. `canvas-fm VERB --help` tells the rest; `canvas-fm demo` "
        "counts the cells of two real samples, to begin with.",
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
    for file, names in VERB_FILES.items():
        if verb is None or verb in names:
            importlib.import_module(f"canvas_fm.cli.verbs.{file}").add_verbs(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _degrade_output_encoding()
    words = list(sys.argv[1:] if argv is None else argv)
    known = words and any(words[0] in names for names in VERB_FILES.values())
    args = argparse.Namespace()
    try:
        args = build_parser(words[0] if known else None).parse_args(words or ["--help"])
        _log_to_stderr(args)
        if args.verb != "serve":  # which runs for weeks, and gives its memory back between requests
            keep_freed_memory()
        _run(args)
    except CanvasError as problem:
        return _say(str(problem), 1)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # `canvas-fm info … | head` has read what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, RuntimeError, ValueError, MemoryError) as problem:
        if (sentence := _refusal(problem, args)) is None:
            raise
        return _say(sentence, 1)
    return 0


def _run(args: argparse.Namespace) -> None:
    """Run a verb; what a failed one has written anew is removed, so that the same command runs again."""
    outputs = (getattr(args, name) for name in getattr(args, "outputs", ()))
    with removed_on_error(*(Path(path) for path in outputs if path is not None)) as new:
        try:
            if (result := args.run(args)) is not None:
                print_result(result, args.json)
            sys.stdout.flush()  # where a full disk under `> result.json` is reported, not after the end
        except OSError as problem:
            if _is_printing(problem):
                new.clear()
            raise


def _refusal(problem: Exception, args: argparse.Namespace) -> str | None:
    """Error of the operating system: permission, room, a folder where a file is due; None for others."""
    if isinstance(problem, MemoryError):
        reason = " ".join(str(problem).split()) or "the system gave none"
        return f"not enough memory ({reason}); {_less_memory(args)}"
    if (cause := system_error(problem)) is None:
        return None
    if cause.filename is None and _is_printing(problem):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the end would complain once more
        return (
            f"the result cannot be printed where standard output goes ({cause.strerror or cause}); files "
            "that the command was to write are written"
        )
    outputs = [
        str(value)
        for name, value in vars(args).items()
        if (name == "out" or name.endswith("_out") or name in ("figure", "export")) and isinstance(value, str)
    ]
    return explain(cause, outputs)


def _is_printing(problem: BaseException) -> bool:
    """Whether an error rose in this folder itself, which writes no file but standard output."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and os.path.dirname(__file__) in trace.tb_frame.f_code.co_filename


def _less_memory(args: argparse.Namespace) -> str:
    """Flags of this verb that reduce memory."""
    options = [f"--{flag}" for flag in ("tile", "batch", "workers", "memory_gb") if _has(args, flag)]
    smaller = f"give a smaller {' or '.join(options).replace('_', '-')}, or " if options else ""
    return f"{smaller}run where there is more"


def _has(args: argparse.Namespace, flag: str) -> bool:
    return any(hasattr(each, flag) for each in (args, *vars(args).values()))


class _LogFile(logging.FileHandler):
    """A log file that may not stop the work: one warning where it cannot be written, no traceback."""

    _warned = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._warned:
            self._warned = True
            _say(
                f"warning: {self.baseFilename} cannot be written ({sys.exc_info()[1]}); it lacks messages", 0
            )

    def close(self) -> None:
        with suppress(OSError):
            super().close()


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
        to_file = _LogFile(path, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logging.getLogger().addHandler(to_file)
    for package in ("canvas_fm", "serving"):
        logging.getLogger(package).setLevel(level)

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        if issubclass(category, UserWarning):
            print(f"canvas-fm: warning: {message}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
