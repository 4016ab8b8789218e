"""`report`."""

from __future__ import annotations

import argparse
from typing import Any

from canvas_fm.cli.options import (
    Verbs,
    add_device,
    add_json,
    add_precision,
    add_verb,
    add_volume_flags,
    add_voxel_size_flags,
    positive_float,
    positive_int,
)

# As canvas_fm.viewing.report.methods.METHODS, which is not imported before a verb runs; a test compares them.
METHODS = ("score", "shape", "pca", "random", "encoder", "finetune", "resnet")


def add_verbs(verbs: Verbs) -> None:
    report = add_verb(
        verbs,
        "report",
        run_report,
        "which way tells cells from other candidates best",
        "Judge the labelled candidates of each volume by what was fitted on the others, with an encoder's "
        "and a detector's features beside simple baselines and a 3D ResNet, with all labels and with few. "
        "OUT then holds report.json, report.md, report.html, figures/, candidates/, and fits/, what each fit "
        "said: the same command after a kill, or with a method more, makes only the other fits.",
    )
    report.add_argument("--volumes", nargs="+", required=True, metavar="VOLUME", help="two or more volumes")
    report.add_argument(
        "--candidates", nargs="+", required=True, metavar="FILE", help="their candidates, one file a volume"
    )
    report.add_argument(
        "--truth", nargs="+", required=True, metavar="FILE", help="all true cells, one file a volume"
    )
    report.add_argument(
        "--tolerance-um", type=positive_float, required=True, metavar="N", help="farthest match in µm"
    )
    report.add_argument(
        "--labels",
        metavar="COLUMN",
        help="column of the candidates: 1 a cell, 0 none, -1 skipped; default: by matching them to --truth",
    )
    report.add_argument(
        "--score-column", metavar="COLUMN", help="the candidates' own score; default score, p_cell, log_score"
    )
    report.add_argument(
        "--own-threshold",
        type=float,
        metavar="T",
        help="own score from which on candidates are cells before any judge, to show the gain; default: the "
        " operating threshold of --detector where they are its, else all are",
    )
    report.add_argument(
        "--within",
        nargs="+",
        metavar="FILE",
        help="boxes in which everything is labelled, one file a volume; one volume alone is divided by them",
    )
    report.add_argument("--out", required=True, metavar="OUT", help="folder to write")
    report.add_argument(
        "--methods", nargs="+", choices=METHODS, help="default: all but finetune that what is given allows"
    )
    report.add_argument(
        "--encoder", nargs="+", default=[], metavar="MODEL", help="one, or one a fold in their order"
    )
    report.add_argument(
        "--detector", nargs="+", default=[], metavar="MODEL", help="one, or one a fold in their order"
    )
    report.add_argument(
        "--background", nargs="+", metavar="VOLUME", help="the second channels of a detector that takes one"
    )
    report.add_argument(
        "--fold",
        nargs="+",
        action="append",
        metavar="NAME",
        help="volumes that are held out together, again for each fold; default: each volume by itself",
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
        "--pool", choices=["mean", "cls", "centre", "contrast"], help="default: the encoder's own"
    )
    report.add_argument("--layer", type=positive_int, metavar="N", help="of the encoder; default last")
    report.add_argument(
        "--correction",
        choices=["none", "centre", "standardise", "whiten"],
        default="none",
        help="of every volume's features by its own candidates; default none",
    )
    report.add_argument(
        "--head", choices=["logistic", "mlp"], default="logistic", help="on features; default logistic"
    )
    report.add_argument(
        "--C",
        type=positive_float,
        help="inverse of the penalty of heads on features; default: chosen on training volumes",
    )
    report.add_argument(
        "--heat",
        action="store_true",
        help="also judge the detector's heat at the candidates, alone and beside the features, as "
        "`refine fit --heat` does; --ratios and finetune go without",
    )
    report.add_argument(
        "--contrasts",
        nargs="+",
        type=positive_float,
        default=[],
        metavar="N",
        help="fit heads on features of the volumes at these contrasts too, as `refine fit --contrasts` does; "
        "finetune, which is no such head, goes without",
    )
    report.add_argument(
        "--own-score",
        action="store_true",
        help="also judge the features beside the candidates' own score, as `refine fit --own-score` does",
    )
    report.add_argument(
        "--ratios",
        nargs="+",
        type=positive_float,
        default=[],
        metavar="R",
        help="with --encoder and --detector: try these contribution ratios too, of what --cut names",
    )
    report.add_argument(
        "--cut",
        nargs="+",
        choices=["mae", "detector"],
        default=["mae"],
        help="the blocks of which --ratios keep a share; default mae",
    )
    report.add_argument(
        "--unfreeze",
        type=positive_int,
        default=1,
        metavar="K",
        help="blocks of the encoder that the method finetune fits too; default 1",
    )
    report.add_argument(
        "--augment", action="store_true", help="finetune flips, turns and brightens crops by chance; slower"
    )
    report.add_argument(
        "--resnet-width", type=positive_int, default=16, metavar="N", help="64 is cellfinder's; default 16"
    )
    report.add_argument(
        "--resnet-crop",
        type=positive_int,
        nargs=3,
        default=(16, 32, 32),
        metavar=("Z", "Y", "X"),
        help="voxels that the ResNet sees; default 16 32 32",
    )
    report.add_argument(
        "--resnet-steps", type=positive_int, default=2000, metavar="N", help="at most; default 2000"
    )
    report.add_argument("--features", metavar="DIR", help="folder in which features are kept for next time")
    report.add_argument(
        "--title", default="Telling cells from other candidates", metavar="TEXT", help="heading of the report"
    )
    add_device(report)
    add_precision(report)
    add_voxel_size_flags(report)
    add_json(report)
    add_volume_flags(report)


def run_report(args: argparse.Namespace) -> None:
    from pathlib import Path

    from canvas_fm.cli.options import open_volume, print_result, report_bad_chunks
    from canvas_fm.viewing.report.methods import Settings
    from canvas_fm.viewing.report.report import report

    volumes = [open_volume(path, args) for path in args.volumes]
    background = None if args.background is None else [open_volume(path, args) for path in args.background]
    found = report(
        volumes,
        args.candidates,
        args.truth,
        args.out,
        tolerance_um=args.tolerance_um,
        labels=args.labels,
        score=args.score_column,
        within=args.within,
        background=background,
        encoders=args.encoder,
        detectors=args.detector,
        methods=args.methods,
        folds=args.fold,
        seeds=args.seeds,
        counts=args.curve,
        own_threshold=args.own_threshold,
        title=args.title,
        settings=Settings(
            pool=args.pool,
            layer=args.layer,
            correction=args.correction,
            head=args.head,
            C=args.C,
            heat=args.heat,
            own_score=args.own_score,
            contrasts=tuple(args.contrasts),
            ratios=tuple(args.ratios),
            cuts=tuple(args.cut),
            unfreeze=args.unfreeze,
            augment=args.augment,
            resnet_width=args.resnet_width,
            resnet_crop_zyx=tuple(args.resnet_crop),
            resnet_steps=args.resnet_steps,
            device=args.device,
            precision=args.precision,
            resample=args.resample,
            ignore_voxel_size=args.ignore_voxel_size,
            keep=None if args.features is None else Path(args.features),
        ),
    )
    report_bad_chunks([*volumes, *(background or [])])
    print_result(found if args.json else _for_people(found, args.out), args.json)


def _for_people(found: dict[str, Any], out: str) -> dict[str, Any]:
    """A line a method: the pooled figures; the rest stands in the report."""
    lines: dict[str, Any] = {"report": f"{out}/report.html"}
    for name, by_volume in found["methods"].items():
        one = by_volume["pooled"]
        area = "–" if one["auc"] is None else f"{one['auc']['mean']:.3f}"
        speed = found["speed"][name]["cells_per_s"]
        lines[name] = f"F1 {one['f1']['mean']:.3f} of {one['ceiling']:.3f}, AUC {area}, {speed:,.0f}/s"
    if found["notes"]:
        lines["notes"] = "; ".join(found["notes"])
    return lines
