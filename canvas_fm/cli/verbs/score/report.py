"""Verb `report`: methods compared on held-out brains, as tables, figures and a page."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from canvas_fm.cli.open_volumes import add_companion, open_companions, open_volumes
from canvas_fm.cli.parser import Parser, Verbs, add_list, add_verb, add_volume_flags, positive_int
from canvas_fm.cli.verbs.cells.label_flags import add_labelled


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "report",
        run_report,
        "which way tells cells from other candidates best",
        "Judge the labelled candidates of each volume by what was fitted on the others, with an encoder's "
        "and a detector's features beside simple baselines and a 3D ResNet, with all labels and with few. "
        "OUT then holds report.json, report.md, report.html, figures/, candidates/, and fits/, what each fit "
        "said: the same command after a kill, or with a method more, makes only the other fits.",
        fill=_fill_report,
    )


def _fill_report(report: Parser) -> None:
    from canvas_fm.viewing.report.report_flags import Method, ReportOptions

    add_labelled(
        report,
        truth_needed=True,
        volumes="two or more volumes",
        truth="all true cells, one file a volume; without --labels they label the candidates",
        roi="one volume alone is divided by them",
    )
    report.add_argument(
        "--score-column",
        metavar="COLUMN",
        help="column of the candidate score; default score, p_cell, log_score",
    )
    report.add_argument(
        "--candidate-threshold",
        type=float,
        metavar="T",
        help="fixed threshold of the candidate score, for the unrefined candidates; default: the "
        "operating threshold of --detector where they are its, else all are",
    )
    report.add_argument("--out", required=True, metavar="OUT", help="folder to write")
    report.add_argument(
        "--methods",
        nargs="+",
        choices=get_args(Method),
        help="default: all but finetune that what is given allows",
    )
    add_list(report, "--encoder", "MODEL", "one, or one a fold in their order")
    add_list(report, "--detector", "MODEL", "one, or one a fold in their order")
    add_companion(report, "--background", "the second channels of a detector that takes one", several=True)
    report.add_argument(
        "--fold",
        nargs="+",
        action="append",
        metavar="NAME",
        help="volumes that are held out together, again for each fold; default: each volume by itself, with "
        "crops of it",
    )
    report.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="default 3")
    report.add_argument(
        "--curve",
        nargs="*",
        type=positive_int,
        default=[20, 100, 500, 2000],
        metavar="N",
        help="numbers of labels to try beside all; default 20 100 500 2000",
    )
    report.add_argument(
        "--title", default="Telling cells from other candidates", metavar="TEXT", help="heading of the report"
    )
    report.add_options("options", ReportOptions)
    add_volume_flags(report)


def run_report(args: argparse.Namespace) -> dict:
    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.viewing.report.report import report

    volumes = open_volumes(args)
    background = open_companions(args, "background", volumes, args.background)
    result = report(
        volumes,
        args.candidates,
        args.truth,
        args.out,
        tolerance_um=args.tolerance_um,
        labels=args.labels,
        score=args.score_column,
        within=args.roi,
        background=background,
        encoders=args.encoder,
        detectors=args.detector,
        methods=args.methods,
        folds=args.fold,
        seeds=args.seeds,
        counts=args.curve,
        candidate_threshold=args.candidate_threshold,
        title=args.title,
        **args.options.explicit,
    )
    report_bad_chunks([*volumes, *(background or [])])
    return result if args.json else _for_people(result, args.out)


def _for_people(result: dict[str, Any], out: str) -> dict[str, Any]:
    """One line a method with its pooled figures."""
    lines: dict[str, Any] = {"report": f"{out}/report.html"}
    for name, by_volume in result["methods"].items():
        pooled = by_volume["pooled"]
        area = "–" if pooled["auc"] is None else f"{pooled['auc']['mean']:.3f}"
        speed = result["speed"][name]["cells_per_s"]
        lines[name] = (
            f"F1 {pooled['f1']['mean']:.3f} (best possible {pooled['ceiling']:.3f}), "
            f"AUC {area}, {speed:,.0f}/s"
        )
    if result["notes"]:
        lines["notes"] = "; ".join(result["notes"])
    return lines
