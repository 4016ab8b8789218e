"""Verb `pretrain`, and the flags shared by all trainings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canvas_fm.cli.open_volumes import add_companion, open_companions, open_volumes
from canvas_fm.cli.parser import (
    Parser,
    Verbs,
    add_list,
    add_switch,
    add_verb,
    add_volume_flags,
    add_zyx_um,
)


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "pretrain",
        run_pretrain,
        "train an encoder on unlabelled volumes",
        "Train an encoder on unlabelled volumes, as a content-aware 3D masked autoencoder or, with a recipe "
        "like cells_contrast, by joint embedding of two views of each place. RUN then holds recipe.yaml as "
        "resolved, metrics.jsonl, figures/, last.pt and encoder/, the folder that other verbs take as MODEL. "
        "Several GPUs: torchrun --nproc-per-node N -m canvas_fm.cli pretrain …",
        fill=_fill_pretrain,
        check=lambda args: recipe_faults(args, "pretrain"),
    )


def _fill_pretrain(pretrain: Parser) -> None:
    pretrain.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    pretrain.add_argument(
        "--volumes", "--data", nargs="+", required=True, metavar="VOLUME", help="one or more volumes"
    )
    add_companion(
        pretrain, "--background", "their second channel, for model.encoder.channels 2", several=True
    )
    add_training_flags(pretrain)


def run_pretrain(args: argparse.Namespace) -> dict:
    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.training.mae.pretrain import pretrain
    from canvas_fm.viewing.info.models import describe_run

    volumes = open_volumes(args)
    background = open_companions(args, "background", volumes, args.background)
    with advise_resume(args):
        run = pretrain(args.recipe, volumes, background=background, **training_options(args))
    skipped = report_bad_chunks([*volumes, *(background or [])])
    return describe_run(run.path) | skipped


@contextmanager
def advise_resume(args: argparse.Namespace) -> Iterator[None]:
    """Context manager: on a full disk say `--resume`, without which a run that has begun is refused."""
    from canvas_fm.errors import StorageFull
    from canvas_fm.training.run.folder.run_folder import RECIPE

    try:
        yield
    except StorageFull as full:
        if args.resume or not (Path(args.out) / RECIPE).exists():
            raise
        raise StorageFull(full.fact, then="run the same command with --resume") from full


def add_training_flags(verb: Parser) -> None:
    """Add the flags that every training has next to recipe and volumes."""
    from canvas_fm.inference.run_flags import DeviceOptions

    verb.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    add_list(
        verb,
        "--held-out",
        "NAME|N",
        "volumes only evaluated on: their names, or how many to split off by the seed",
    )
    verb.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe, for example training.steps=200",
    )
    add_switch(verb, "--resume", "go on from RUN's last checkpoint")
    verb.add_argument("--seed", type=int, help="instead of the recipe's")
    verb.add_options("where", DeviceOptions)
    sizes = verb.add_mutually_exclusive_group()
    add_zyx_um(
        sizes, "--resample", "read every volume at this voxel size in micrometres, where theirs differ"
    )
    add_switch(sizes, "--ignore-voxel-size", "mix volumes whose voxel sizes differ as they are")
    add_volume_flags(verb)


def training_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of a training by the flags of `add_training_flags`."""
    held_out = args.held_out
    if len(held_out) == 1 and held_out[0].isdecimal():  # a count of volumes, not a name
        held_out = int(held_out[0])
    return {
        "out": args.out,
        "resume": args.resume,
        "device": args.where.device,
        "seed": args.seed,
        "overrides": args.overrides,
        "held_out": held_out,
        "resample_to": None if args.resample is None else tuple(args.resample),
        "ignore_voxel_size": args.ignore_voxel_size,
    }


def recipe_faults(args: argparse.Namespace, verb: str) -> list[str]:
    """Errors in the recipe and in `--set`, a message each; torch is not imported for it."""
    from canvas_fm.errors import CanvasError
    from canvas_fm.training.recipe.detector_recipe import DetectorRecipe, init_overrides
    from canvas_fm.training.recipe.read_recipe import check_recipe, pretraining_class
    from canvas_fm.training.recipe.recipe import AnyRecipe

    if getattr(args, "recipe", None) is None:
        return []
    try:
        kind: type[AnyRecipe] = pretraining_class(args.recipe) if verb == "pretrain" else DetectorRecipe
    except CanvasError as problem:  # no such recipe, or no YAML
        return [str(problem)]
    overrides = [*(args.overrides or []), *init_overrides(getattr(args, "init", None))]
    return check_recipe(kind, args.recipe, overrides)[1]
