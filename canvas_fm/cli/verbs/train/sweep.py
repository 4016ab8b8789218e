"""Verb `sweep`: a grid of pretrainings and its tables."""

from __future__ import annotations

import argparse

from canvas_fm.cli.parser import Parser, Verbs, add_verb, add_volume_flags, positive_int
from canvas_fm.errors import counted


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "sweep",
        run_sweep,
        "pretrain every combination of a grid and compare them",
        "Pretrain every combination of a grid of settings and data sets, several at a time. OUT then holds "
        "results.md (the best run of each data set, the effect of each parameter, a ranking by what features "
        "are worth), results.csv, curves.png, pareto.png and runs/NAME. The same command after a kill goes "
        "on; runs that failed are tried again.",
        fill=_fill_sweep,
        check=_faults,
    )


def _fill_sweep(sweep: Parser) -> None:
    from canvas_fm.inference.run_flags import DeviceOptions

    sweep.add_argument("sweep", metavar="SWEEP", help="a YAML file, or the name of a shipped sweep")
    sweep.add_argument(
        "--data", default=".", metavar="DIR", help="folder that its globs of volumes start from"
    )
    sweep.add_argument("--out", required=True, metavar="OUT", help="folder of the sweep")
    sweep.add_argument(
        "--workers", type=positive_int, default=1, metavar="N", help="trainings at a time; default 1"
    )
    sweep.add_argument(
        "--set", dest="overrides", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="change the recipe of every run, for example training.steps=200",
    )  # fmt: skip
    sweep.add_options("where", DeviceOptions)
    add_volume_flags(sweep)


def _faults(args: argparse.Namespace) -> list[str]:
    from canvas_fm.errors import CanvasError
    from canvas_fm.training.sweep.grid import expand, read_sweep

    if getattr(args, "sweep", None) is None:
        return []
    try:
        expand(read_sweep(args.sweep, args.overrides or []))
    except CanvasError as problem:
        return [str(problem)]
    return []


def run_sweep(args: argparse.Namespace) -> None:
    from canvas_fm.cli.output import print_result
    from canvas_fm.errors import CanvasError
    from canvas_fm.training.sweep.sweep import sweep

    result = sweep(
        args.sweep,
        out=args.out,
        data=args.data,
        overrides=args.overrides,
        workers=args.workers,
        device=args.where.device,
        **args.volume_options.explicit,
    )
    done = len(result.runs) - len(result.failed)
    facts = {
        "runs": len(result.runs),
        "done": done,
        "summary": str(result.summary),
        "table": str(result.results),
    }
    print_result(facts, args.json)
    if result.failed:
        first, error = next(iter(result.failed.items()))
        raise CanvasError(
            f"{len(result.failed)} of {counted(len(result.runs), 'run')} failed, {first} first: {error}; "
            f"{result.summary} lists them, and the same command tries them again"
        )
