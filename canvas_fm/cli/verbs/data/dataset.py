"""Verb `dataset`: data sets in the layout of the CANVAS paper."""

from __future__ import annotations

import argparse

from canvas_fm.cli.parser import (
    ZYX,
    Parser,
    Verbs,
    add_group,
    add_verb,
    positive_float,
    positive_int,
)
from canvas_fm.cli.verbs.data.info import add_synthetic


def add_verbs(verbs: Verbs) -> None:
    group = add_group(
        verbs,
        "dataset",
        "check and write data sets of planes with annotated regions",
        "Data sets in the layout of the CANVAS paper: MARKER_BRAINID/image/X_Y_Z_chN.tiff with "
        "MARKER_BRAINID/label/TRAIN/…_regionK_gt.csv, in a folder or a .tar. Verbs take a brain as DIR:BRAIN "
        "or DIR:MARKER, and a region's points as DIR:BRAIN/region_2.",
    )
    add_verb(
        group,
        "check",
        run_check,
        "say what a data set holds and everything that is wrong with it",
        "Look at every plane's header and every annotation. Exit code 1 where anything is wrong: missing, "
        "doubled or damaged planes, other sizes or types, gaps in z, annotations outside, an unknown marker.",
        fill=_fill_check,
    )
    add_verb(
        group,
        "write",
        run_write,
        "write a synthetic data set whose cells are known",
        "Write phantom brains as TIFF planes with annotated train and test regions, the same for the same "
        "seed.",
        fill=_fill_write,
    )


def _fill_check(check: Parser) -> None:
    check.add_argument("path", metavar="DIR|TAR", help="folder of brains, or a .tar of it")


def _fill_write(write: Parser) -> None:
    write.add_argument("out", metavar="OUT", help="folder, or OUT.tar for an archive")
    add_synthetic(write, (64, 192, 288))
    write.add_argument("--regions", type=positive_int, default=3, help="in TRAIN, and in TEST; default 3")
    write.add_argument(
        "--voxel-um",
        nargs=3,
        type=positive_float,
        default=(4.0, 1.8, 1.8),
        metavar=ZYX,
        help="default 4 1.8 1.8",
    )


def run_check(args: argparse.Namespace) -> None:
    from canvas_fm.cli.output import print_result
    from canvas_fm.data.dataset.check import check_dataset
    from canvas_fm.errors import CanvasError, counted

    checked = check_dataset(args.path)
    if args.json:
        print_result(checked.as_dict(), True)
    else:
        for name, brain in checked.brains.items():
            size = " × ".join(map(str, brain["shape_zyx"] or ("no planes",)))
            cells = counted(sum(brain["regions"].values()), "annotation")
            regions = counted(len(brain["regions"]), "region")
            print(f"{name}: {size}, {brain['dtype']}, {regions}, {cells}")
        for fault in checked.faults:
            print(f"  {fault}")
    if checked.faults:
        raise CanvasError(f"{args.path} has {counted(len(checked.faults), 'fault')}, listed above")


def run_write(args: argparse.Namespace) -> dict:
    from canvas_fm.data.dataset.write_synthetic import write_dataset

    out = write_dataset(
        args.out,
        shape_zyx=tuple(args.shape),
        markers=tuple(args.markers),
        regions=args.regions,
        seed=args.seed,
        voxel_um=tuple(args.voxel_um),
    )
    return {"written": str(out), "markers": list(args.markers), "regions": args.regions}
