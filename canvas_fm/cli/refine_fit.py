"""`refine fit`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from canvas_fm.cli.options import (
    Verbs,
    add_device,
    add_json,
    add_labelled,
    add_precision,
    add_verb,
    add_volume_flags,
    add_voxel_size_flags,
    positive_float,
    positive_int,
)

if TYPE_CHECKING:
    from canvas_fm.heads.refine.refiner import Refiner


def add_fit(group: Verbs) -> None:
    """The verb, below `refine`."""
    fit = add_verb(
        group,
        "fit",
        run_fit,
        "learn from labelled candidates",
        "Fit a refiner on candidates whose labels are a column, or come from matching them with true cells. "
        "Calibration and threshold are those of volumes left out, each once. OUT then holds config.json, "
        "model.safetensors and report.json, where the ceiling 2R/(1+R) stands beside every F1.",
    )
    fit.add_argument("--encoder", metavar="MODEL", help="an encoder's folder, or a shipped name")
    fit.add_argument("--detector", metavar="MODEL", help="a detector's folder, or a shipped name")
    add_labelled(fit)
    fit.add_argument(
        "--background", nargs="+", metavar="VOLUME", help="the second channels of a detector that takes one"
    )
    fit.add_argument("--out", required=True, metavar="REFINER", help="folder to write")
    fit.add_argument("--overwrite", action="store_true", help="replace OUT where it is there already")
    fit.add_argument(
        "--variant", choices=["concat", "mae", "detector"], help="default: concat of what models are given"
    )
    fit.add_argument("--cut", choices=["mae", "detector"], help="the block that --ratio cuts; default mae")
    fit.add_argument(
        "--ratio",
        type=positive_float,
        default=1.0,
        metavar="R",
        help="share of the cut block's columns that is kept, the first ones; default 1",
    )
    fit.add_argument(
        "--reduce", choices=["columns", "pca"], default="columns", help="pca: the first components instead"
    )
    fit.add_argument(
        "--pool",
        choices=["mean", "cls", "centre", "contrast"],
        help="of the encoder; default: what its config names",
    )
    fit.add_argument(
        "--layer", type=int, metavar="N", help="of the encoder, its blocks count from 1; default last"
    )
    fit.add_argument(
        "--correction",
        choices=["none", "centre", "standardise", "whiten"],
        default="none",
        help="of every brain by its own candidates; default none",
    )
    fit.add_argument(
        "--own-score",
        action="store_true",
        help="look at the candidates' own score too, beside any variant; good where its level carries from "
        "brain to brain (one marker, one detector), harmful where it does not. Candidates to be judged then "
        "need that column",
    )
    fit.add_argument(
        "--score-column",
        metavar="COLUMN",
        help="the score that --own-score looks at; default score, p_cell, log_score",
    )
    fit.add_argument(
        "--heat",
        action="store_true",
        help="with --detector: look at its own heat at each candidate too, beside any variant; what tells "
        "most where the detector is a good one, and candidates need z, y, x alone",
    )
    fit.add_argument(
        "--contrasts",
        nargs="+",
        type=positive_float,
        default=[],
        metavar="N",
        help="learn from the volumes as if stained so many times as strongly too, such as 0.6 1.6, so that "
        "model and threshold hold for dimmer and brighter ones; features are worked out for each",
    )
    fit.add_argument(
        "--unfreeze",
        type=int,
        default=0,
        metavar="K",
        help="fit the encoder's last K blocks too; the refiner carries them. Default 0: the encoder as it is",
    )
    fit.add_argument(
        "--augment",
        action="store_true",
        help="with --unfreeze: flip, turn and brighten crops by chance; slower, all blocks run in every step",
    )
    fit.add_argument("--whiten", action="store_true", help="decorrelate columns, by the training volumes")
    fit.add_argument("--model", choices=["logistic", "mlp"], default="logistic", help="default logistic")
    fit.add_argument(
        "--C",
        type=positive_float,
        help="inverse of the logistic model's penalty; default: chosen on volumes left out",
    )
    fit.add_argument(
        "--calibration",
        choices=["temperature", "isotonic", "none"],
        default="temperature",
        help="of the probabilities; default temperature",
    )
    fit.add_argument(
        "--hold-out",
        choices=["brains", "regions"],
        default="brains",
        help="left out in turn for calibration and threshold; regions (of --within) for two unlike brains",
    )
    fit.add_argument(
        "--folds", type=positive_int, default=5, help="of volumes left out, at most one a volume; default 5"
    )
    fit.add_argument(
        "--force-random-split",
        action="store_true",
        help="with one volume and no boxes: split its rows at random, which the report then marks",
    )
    fit.add_argument("--seed", type=int, default=0, help="of folds and MLP; default 0")
    fit.add_argument(
        "--features", metavar="DIR", help="folder in which features are kept for the next fit on them"
    )
    add_running(fit)


def run_fit(args: argparse.Namespace) -> None:
    from pathlib import Path

    from canvas_fm.cli.options import labelled, open_volume, print_result, report_bad_chunks
    from canvas_fm.heads.features.extractor import Extractor
    from canvas_fm.heads.refine.fit import fit_refiner
    from canvas_fm.models.checkpoint import load

    _check_flags(args)
    volumes = [open_volume(path, args) for path in args.volumes]
    background = None if args.background is None else [open_volume(path, args) for path in args.background]
    brains = labelled(args, volumes, background, args.score_column)
    extractor = Extractor(
        encoder=None if args.encoder is None else load(args.encoder, kind="encoder"),
        detector=None if args.detector is None else load(args.detector, kind="detector"),
        pool=args.pool,
        layer=args.layer,
        heat=args.heat,
        **running(args),
    )
    writing: dict[str, Any] = {"overwrite": args.overwrite}
    writing["keep"] = None if args.features is None else Path(args.features)
    if args.unfreeze:
        from canvas_fm.training.finetune.finetune import Tuning, fit_tuned

        tuning = Tuning(args.unfreeze, augment=args.augment)
        report = fit_tuned(_refiner(args), brains, extractor, args.out, tuning, **writing)
    else:
        writing |= {"own_score": args.own_score, "contrasts": args.contrasts}
        report = fit_refiner(_refiner(args), brains, extractor, args.out, **writing)
    skipped = report_bad_chunks([*volumes, *(background or [])])
    result = report if args.json else _for_people(report)
    print_result(result, args.json, bad_chunks=skipped)


def _check_flags(args: argparse.Namespace) -> None:
    from canvas_fm.errors import CanvasError

    if args.unfreeze and (args.own_score or args.heat):
        flag = "--own-score" if args.own_score else "--heat"
        raise CanvasError(
            f"{flag} goes with the encoder as it is: beside a score that tells most, --unfreeze has "
            "little to learn from; give one of the two"
        )
    if args.unfreeze and args.contrasts:
        raise CanvasError(
            "--contrasts goes with the encoder as it is; with --unfreeze, --augment brightens crops by chance"
        )
    if args.score_column and not args.own_score:
        raise CanvasError("--score-column names what --own-score looks at; give that flag too")
    if args.heat and not args.detector:
        raise CanvasError("--heat is what a detector says of a candidate; give --detector too")


def _refiner(args: argparse.Namespace) -> Refiner:
    from canvas_fm.heads.refine.refiner import Refiner

    variant = args.variant
    if variant is None:
        variant = "concat" if args.encoder and args.detector else "mae" if args.encoder else "detector"
    cut = args.cut
    if cut is None and args.ratio < 1:
        cut = "detector" if variant == "detector" else "mae"
    return Refiner(
        variant,
        cut=cut,
        ratio=args.ratio,
        reduce=args.reduce,
        correction=args.correction,
        whiten=args.whiten,
        model=args.model,
        C=args.C,
        calibration=args.calibration,
        folds=args.folds,
        hold_out=args.hold_out,
        force_random=args.force_random_split,
        random_state=args.seed,
    )


def _for_people(report: dict[str, Any]) -> dict[str, Any]:
    """The report's pooled figures, each of volumes that were left out."""
    figures = report["cross_validation"]
    pooled = figures["pooled"]
    shown: dict[str, Any] = {
        "refiner": report["refiner"],
        "sha256": report["sha256"],
        "candidates": f"{pooled['candidates']} labelled, {pooled['cells']} of them cells, "
        f"{report['skipped']} skipped",
        "columns": report["columns_used"],
        "threshold": report["threshold"],
        "left out": f"each {figures['split']} once, in {figures['folds']} folds",
    }
    for name, of in {"all": pooled, **figures["brains"]}.items():
        shown[name] = _in_words(of)
    if report["tuned"]:
        shown["all, encoder frozen"] = _in_words(figures["frozen"]["pooled"])
    if figures["warning"]:
        shown["warning"] = figures["warning"]
    return shown


def _in_words(of: dict[str, Any]) -> str:
    ranking = "undefined" if of["auc"] is None else f"{of['auc']:.3f}"
    above = "recall unknown" if of["f1_ceiling"] is None else f"ceiling {of['f1_ceiling']:.3f}"
    return (
        f"F1 {of['f1']:.3f} ({above}; every candidate kept {of['f1_unrefined']:.3f}), AUC {ranking}, "
        f"calibration error {of['calibration_error']:.3f}"
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """How `fit` and `apply` run models."""
    parser.add_argument("--batch", type=positive_int, default=64, help="crops at once; default 64")
    add_precision(parser, backends=True)
    add_device(parser)
    add_voxel_size_flags(parser)
    add_json(parser)
    add_volume_flags(parser)


def running(args: argparse.Namespace) -> dict[str, Any]:
    """The same as keywords."""
    return {
        "batch": args.batch,
        "device": args.device,
        "precision": args.precision,
        "backend": args.backend,
        "resample": args.resample,
        "ignore_voxel_size": args.ignore_voxel_size,
    }
