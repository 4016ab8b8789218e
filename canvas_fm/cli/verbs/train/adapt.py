"""Verb `adapt`: a detector fitted to a new brain by few labels."""

from __future__ import annotations

import argparse

from canvas_fm.cli.open_volumes import open_volume
from canvas_fm.cli.parser import Parser, Verbs, add_roi, add_verb, add_volume_flags


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "adapt",
        run_adapt,
        "adapt a detector to a new brain with a few labelled cells",
        "Adapt a detector to a volume of which 10 to 200 cells are labelled. Its threshold, its threshold "
        "with blob amplitude in the score, or all layers are fitted, and scored on parts of the labelled "
        "boxes that they were not fitted on. Layers learn from the labels and from what the detector is sure "
        "of in the rest of the volume, which needs no labels; with --layers all from the labels alone. "
        "The best is written to NEW if it is surely better than the detector as it was, self-training of a "
        "detector that was trained on phantoms alone if it is more likely better than not; else NEW has the "
        "same weights and threshold, which is said. "
        "All cells in the boxes have to be labelled; outside them no label counts.",
        fill=_fill_adapt,
    )


def _fill_adapt(adapt: Parser) -> None:
    from canvas_fm.training.detector.adapt.adapt_flags import AdaptOptions

    adapt.add_argument("model", metavar="DETECTOR", help="a detector's folder, or the name of a shipped one")
    adapt.add_argument("volume", metavar="VOLUME")
    adapt.add_argument("--points", required=True, metavar="FEW.csv", help="the labelled cells")
    add_roi(adapt, "boxes in which all cells are labelled", required=True)
    adapt.add_argument("--out", required=True, metavar="NEW", help="folder of the adapted detector")
    adapt.add_options("options", AdaptOptions)
    add_volume_flags(adapt)


def run_adapt(args: argparse.Namespace) -> dict:
    from dataclasses import asdict

    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.models.load_model import load
    from canvas_fm.training.detector.adapt.adapt import adapt_detector

    volume = open_volume(args)
    done = adapt_detector(
        load(args.model, kind="detector"),
        volume,
        args.points,
        args.roi,
        out=args.out,
        **args.options.explicit,
    )
    result = {
        "result": done.sentence,
        "chosen": done.chosen,
        "cells": done.cells,
        "threshold": done.detector.config.threshold,
        "cross_validated": [asdict(score) for score in done.scores],
        "written": args.out,
        "sha256": done.detector.sha256,
    }
    return result | report_bad_chunks([volume])
