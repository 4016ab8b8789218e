"""Verb `train-detector`."""

from __future__ import annotations

import argparse

from canvas_fm.cli.open_volumes import add_companion, open_companions, open_volumes
from canvas_fm.cli.parser import Parser, Verbs, add_list, add_roi, add_verb
from canvas_fm.cli.verbs.train.pretrain import (
    add_training_flags,
    advise_resume,
    recipe_faults,
    training_options,
)


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "train-detector",
        run_train_detector,
        "train a detector on volumes and their cells",
        "Train a heat-map detector on volumes and the cells in them. RUN then holds recipe.yaml as resolved, "
        "metrics.jsonl, figures/, last.pt and detector/, whose operating threshold is calibrated over all "
        "training volumes.",
        fill=_fill_train_detector,
        check=lambda args: recipe_faults(args, "train-detector"),
    )


def _fill_train_detector(train: Parser) -> None:
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    add_list(
        train, "--volumes", "VOLUME", "one or more volumes; none where the recipe trains on phantoms alone"
    )
    add_list(train, "--points", "FILE", "their cells, one file a volume, in order")
    add_roi(train, "boxes in which all cells are labelled", several=True, note="default: everywhere")
    add_companion(train, "--masks", "their masks, for target.kind masks", several=True)
    add_companion(train, "--background", "their second channel, for model.channels 2", several=True)
    train.add_argument(
        "--fold-detectors", nargs="+", default=[], metavar="MODEL",
        help="detectors that the recipe trained without some of the volumes each: the threshold is chosen on "
        "their scores of what they did not see",
    )  # fmt: skip
    train.add_argument(
        "--init", metavar="ENCODER",
        help="an encoder's folder, or the name of a shipped one: the net first learns to predict its tokens, "
        "without labels",
    )  # fmt: skip
    add_training_flags(train)


def run_train_detector(args: argparse.Namespace) -> dict:
    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.training.detector.train import train_detector
    from canvas_fm.viewing.info.models import describe_run

    volumes = open_volumes(args)
    masks = open_companions(args, "masks", volumes, args.masks)
    background = open_companions(args, "background", volumes, args.background)
    with advise_resume(args):
        run = train_detector(
            args.recipe,
            volumes,
            args.points,
            masks=masks,
            within=args.roi,
            background=background,
            fold_detectors=args.fold_detectors,
            init=args.init,
            **training_options(args),
        )
    skipped = report_bad_chunks([*volumes, *(masks or []), *(background or [])])
    return describe_run(run.path) | skipped
