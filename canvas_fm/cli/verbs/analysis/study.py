"""Verb `study`: several brains from raw planes to one page."""

from __future__ import annotations

import argparse
from typing import Any

from canvas_fm.cli.parser import Parser, Verbs, add_list, add_switch, add_verb, add_workers


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "study",
        run_study,
        "several brains from raw planes or volumes to cells, vectors, counts and one page",
        "Run the steps that STUDY.yaml has a section for, on each of its brains: convert (with stripes and "
        "shading removed where the section says so), detect, refine, embed, regions; then index, groups and "
        "profiles; then pages. What is done with the same inputs is not done again, what has other inputs "
        "is. The same command again resumes.",
        fill=_fill,
        check=_faults,
    )


def _fill(parser: Parser) -> None:
    parser.add_argument(
        "study", metavar="STUDY.yaml", help="brains and steps; or the name of a shipped study"
    )
    parser.add_argument(
        "--out", metavar="OUT", help="folder of results; default: beside the file, by its name"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="folder that relative paths start from; default: that of the file"
    )
    add_list(parser, "--only", "STEP", "only these steps")
    parser.add_argument("--from", dest="start", metavar="STEP", help="this step and those after it")
    add_list(parser, "--brains", "NAME", "only these brains")
    add_switch(
        parser,
        "--dry-run",
        "run nothing: say what would run and why, minutes and bytes, measured in a box of one brain",
    )
    add_workers(parser)


def _faults(args: argparse.Namespace) -> list[str]:
    from canvas_fm.errors import CanvasError
    from canvas_fm.pipeline.study.settings import read_study_settings

    if getattr(args, "study", None) is None:
        return []
    try:
        read_study_settings(args.study)
    except CanvasError as problem:
        return [str(problem)]
    return []


def run_study(args: argparse.Namespace) -> None:
    from pathlib import Path

    from canvas_fm.cli.output import print_result
    from canvas_fm.errors import CanvasError, counted
    from canvas_fm.pipeline.study.preview import preview_study
    from canvas_fm.pipeline.study.study import study

    path = Path(args.study)
    place = path.parent if path.is_file() else Path()
    out = Path(args.out) if args.out is not None else place / path.stem
    chosen: dict[str, Any] = {"data": args.data or place, "only": args.only, "start": args.start}
    chosen |= {"brains": args.brains, "workers": args.workers, "scheduler": args.scheduler}
    if args.dry_run:
        print_result(_summary(preview_study(args.study, out, **chosen), args.json), args.json)
        return
    done = study(args.study, out, **chosen)
    page = str(done.page) if done.page.is_file() else None
    result: dict[str, Any] = {"out": str(out), "page": page, "ran": list(done.ran), "kept": len(done.kept)}
    print_result(result | ({"failed": done.failed} if done.failed else {}), args.json)
    if done.failed:
        name, error = next(iter(done.failed.items()))
        raise CanvasError(
            f"{counted(len(done.failed), 'brain')} failed, {name} first: {error}; the same command tries "
            "them again"
        )


def _summary(rows: list[dict[str, Any]], as_json: bool) -> dict[str, Any]:
    """Totals of what is to be done, and every task."""
    left = [row for row in rows if row["state"] != "done"]
    totals = {key: sum(row.get(key) or 0 for row in left) for key in ("minutes", "bytes")}
    unknown = [row["task"] for row in left if row.get("minutes") is None]
    result: dict[str, Any] = {"tasks": len(rows), "done": len(rows) - len(left)}
    result |= {"minutes": round(totals["minutes"], 2), "bytes": totals["bytes"], "without_estimate": unknown}
    return result | {"steps": rows}
