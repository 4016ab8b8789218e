"""Verbs `refine fit` and `refine apply`."""

from __future__ import annotations

import argparse
from typing import Any

from canvas_fm.cli.open_volumes import (
    add_companion,
    open_background,
    open_companions,
    open_volume,
    open_volumes,
)
from canvas_fm.cli.parser import (
    Parser,
    Verbs,
    add_group,
    add_switch,
    add_verb,
    add_volume_flags,
    add_workers,
)
from canvas_fm.cli.verbs.cells.label_flags import add_labelled
from canvas_fm.errors import CanvasError, counted


def add_verbs(verbs: Verbs) -> None:
    group = add_group(
        verbs,
        "refine",
        "tell true from false detections",
        "Learn from labelled candidates which are cells, and refine the candidates of other volumes, "
        "whatever detector they are from.",
    )
    add_verb(
        group,
        "fit",
        run_fit,
        "learn from labelled candidates",
        "Fit a refiner on candidates whose labels are a column, or come from matching them with true cells. "
        "Calibration and threshold are cross-fitted over volumes. OUT then holds config.json, "
        "model.safetensors and report.json, where the best possible F1 at this recall, 2R/(1+R), stands "
        "beside every F1.",
        fill=_fill_fit,
    )
    add_verb(
        group,
        "apply",
        run_apply,
        "P(cell) for every candidate of a volume",
        "Write every row of CANDIDATES once, in its order, with all its columns and p_cell. The same command "
        "again resumes. The refiner's encoder and detector are found among the shipped models by their "
        "sha256, else given.",
        fill=_fill_apply,
        check=_apply_faults,
    )


def _fill_fit(fit: Parser) -> None:
    from canvas_fm.heads.refine.fit_flags import FitOptions
    from canvas_fm.inference.run_flags import BatchedRun

    fit.add_argument("--encoder", metavar="MODEL", help="an encoder's folder, or a shipped name")
    fit.add_argument("--detector", metavar="MODEL", help="a detector's folder, or a shipped name")
    add_labelled(fit)
    add_companion(fit, "--background", "the second channels of a detector that takes one", several=True)
    fit.add_argument("--out", required=True, metavar="REFINER", help="folder to write")
    add_switch(fit, "--overwrite", "replace OUT where it is there already")
    fit.add_argument(
        "--features", metavar="DIR", help="folder in which features are kept for the next fit on them"
    )
    fit.add_argument(
        "--recalls",
        metavar="FILE.json",
        help="recalls of detectors on held-out volumes, to be recorded for counts: a list of objects with "
        "made_by (sha256), threshold, found and cells by volume",
    )
    fit.add_options("fit", FitOptions)
    fit.add_options("options", BatchedRun)
    add_volume_flags(fit)


def _fill_apply(apply: Parser) -> None:
    from canvas_fm.inference.run_flags import BatchedRun

    apply.add_argument("model", metavar="MODEL", help="a refiner's folder, or the name of a shipped one")
    apply.add_argument("volume", metavar="VOLUME")
    apply.add_argument(
        "candidates",
        metavar="CANDIDATES",
        help="CSV or Parquet; only z, y, x are needed, "
        "and the score where the refiner was fitted with --candidate-score",
    )
    apply.add_argument("--out", required=True, metavar="CELLS", help="file to write: .csv or .parquet")
    apply.add_argument("--encoder", metavar="MODEL", help="the refiner's encoder, where it is not shipped")
    apply.add_argument("--detector", metavar="MODEL", help="the refiner's detector, where it is not shipped")
    add_companion(apply, "--background", "second channel of a detector that takes one")
    add_switch(apply, "--cells-only", "write only the candidates at or above the refiner's threshold")
    apply.add_argument(
        "--count-by", metavar="COLUMN", help="also count cells by the values of this column, with intervals"
    )
    apply.add_argument(
        "--recall", nargs=2, type=int, metavar=("FOUND", "CELLS"),
        help="of so many CELLS that were looked for by eye, FOUND have a candidate: the count is then of all "
        "cells; default: as recorded with the refiner for candidates of this detector and threshold",
    )  # fmt: skip
    add_workers(apply)
    apply.add_options("options", BatchedRun)
    add_volume_flags(apply)


def run_fit(args: argparse.Namespace) -> dict:
    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.pipeline.fit_refiner import fit_refiner

    volumes = open_volumes(args)
    background = open_companions(args, "background", volumes, args.background)
    report = fit_refiner(
        volumes,
        args.candidates,
        args.out,
        encoder=args.encoder,
        detector=args.detector,
        labels=args.labels,
        truth=args.truth,
        tolerance_um=args.tolerance_um,
        within=args.roi,
        background=background,
        recalls=args.recalls or (),
        feature_cache=args.features,
        overwrite=args.overwrite,
        **args.fit.explicit,
        **args.options.explicit,
    )
    skipped = report_bad_chunks([*volumes, *(background or [])])
    return (report if args.json else _for_people(report)) | skipped


def run_apply(args: argparse.Namespace) -> dict:
    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.data.points.points import P_CELL, Points
    from canvas_fm.heads.refine.apply.apply import refine
    from canvas_fm.heads.refine.counts.count_interval import counts_by_region
    from canvas_fm.heads.refine.counts.refined_count import count_refined
    from canvas_fm.heads.refine.refiner import Refiner
    from canvas_fm.models.load_model import load

    refiner = Refiner.load(args.model)
    refiner.set_params(device=args.options.device)
    volume = open_volume(args)
    background = open_background(args, volume)
    points = Points.read(args.candidates)
    if args.count_by is not None and args.count_by not in points.columns:
        columns = ", ".join(points.columns) or "none"
        raise CanvasError(f"{args.candidates} has no column {args.count_by!r} to count by; found {columns}")
    recall = None if args.recall is None else (args.recall[0], args.recall[1])
    refined = refine(
        refiner,
        volume,
        points,
        encoder=None if args.encoder is None else load(args.encoder, kind="encoder"),
        detector=None if args.detector is None else load(args.detector, kind="detector"),
        background=background,
        recall=recall,
        cells_only=args.cells_only,
        out=args.out,
        workers=args.workers,
        scheduler=args.scheduler,
        **args.options.explicit,
    )
    skipped = report_bad_chunks([volume] if background is None else [volume, background])
    p_cell = refined.columns[P_CELL].astype("float64")
    result: dict[str, Any] = {
        "written": args.out,
        "candidates": len(points),
        "cells": int((p_cell >= refiner.threshold_).sum()),
        "threshold": refiner.threshold_,
    }
    if args.cells_only:
        result |= _count_in(refined.meta)
    else:
        count = count_refined(
            refiner, points, p_cell, recall=recall, volume=volume.name, crop_of=volume.crop_of
        )
        result |= count.as_dict()
        if args.count_by is not None:
            regions = refined.columns[args.count_by]
            by_region = counts_by_region(p_cell, regions, refiner.count_spread_, count.recall)
            result["regions"] = [{"region": name, **count._asdict()} for name, count in by_region.items()]
    return result | skipped


def _count_in(meta: dict[str, str]) -> dict[str, Any]:
    """The count of all candidates as it is recorded with a file that holds the cells alone."""
    return {
        "count_of": meta["count_of"],
        "expected_cells": float(meta["expected_cells"]),
        "interval_90": [float(value) for value in meta["expected_cells_90"].split()],
        "notes": [meta["count_notes"]] if "count_notes" in meta else [],
    }


def _apply_faults(args: argparse.Namespace) -> list[str]:
    if args.cells_only and args.count_by is not None:
        return ["--count-by counts over all candidates; leave it or --cells-only out"]
    return []


_HELD_OUT = {"random": "candidate", "brains": "brain", "regions": "region"}


def _for_people(report: dict[str, Any]) -> dict[str, Any]:
    """The report's pooled cross-validated figures."""
    figures = report["cross_validation"]
    pooled = figures["pooled"]
    lines: dict[str, Any] = {
        "refiner": report["refiner"],
        "sha256": report["sha256"],
        "candidates": f"{pooled['candidates']} labelled, {pooled['cells']} of them cells, "
        f"{report['skipped']} skipped",
        "columns": report["columns_used"],
        "threshold": report["threshold"],
        "cross-validated": f"each {_HELD_OUT.get(figures['split'], figures['split'])} held out once, in "
        f"{counted(figures['folds'], 'fold')}",
    }
    for name, of in {"all": pooled, **figures["brains"]}.items():
        lines[name] = _in_words(of)
    if report["tuned"]:
        lines["all, encoder frozen"] = _in_words(figures["frozen"]["pooled"])
    if figures["warning"]:
        lines["warning"] = figures["warning"]
    return lines


def _in_words(of: dict[str, Any]) -> str:
    ranking = "undefined" if of["auc"] is None else f"{of['auc']:.3f}"
    above = "recall unknown" if of["f1_ceiling"] is None else f"best possible {of['f1_ceiling']:.3f}"
    return (
        f"F1 {of['f1']:.3f} ({above}; F1 if every candidate were kept: {of['f1_unrefined']:.3f}), "
        f"AUC {ranking}, calibration error {of['calibration_error']:.3f}"
    )
