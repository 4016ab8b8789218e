"""Verbs `coexpress` and `proximity`: how two populations of cells lie to each other."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from canvas_fm.cli.parser import (
    Parser,
    Verbs,
    add_switch,
    add_verb,
    add_zyx_um,
    positive_float,
    positive_int,
)
from canvas_fm.cli.verbs.analysis.regions import add_atlas_flags, placing_of

if TYPE_CHECKING:
    from canvas_fm.analysis.proximity.proximity import Proximity

SEED_HELP = "of the null models; default 0"


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "coexpress",
        run_coexpress,
        "cells of two or more markers that coincide, per region, against chance",
        "Match the cells of each two markers one to one within a tolerance, as many as possible. Per region: "
        "shares with 95 % intervals, what chance brings together when one marker's cells are shifted or "
        "shuffled inside their region, and p-values. With a column p_cell pairs are counted by P(cell).",
        fill=_fill_coexpress,
    )
    add_verb(
        verbs,
        "proximity",
        run_proximity,
        "distances between two populations, or to a mask, against chance",
        "Distances in µm from each cell of FROM to the nearest of TO (points, or labelled voxels such as "
        "vessels or plaques), and the functions G, and for points K and L, in 3D with edge correction, each "
        "with the 95 % envelope of a null model.",
        fill=_fill_proximity,
    )


def _fill_coexpress(parser: Parser) -> None:
    parser.add_argument(
        "cells", nargs="+", metavar="CELLS", help="points z, y, x in voxels; one file a marker"
    )
    parser.add_argument(
        "--tolerance-um", type=positive_float, required=True, metavar="N", help="farthest coincidence in µm"
    )
    parser.add_output("--out", required=True, metavar="COEXPRESSION.csv", help="table to write")
    parser.add_output("--cells-out", metavar="PAIRS.csv", help="also write the matched rows of each pair")
    parser.add_argument(
        "--channels", nargs="+", metavar="NAME", help="names of the markers; default: of files"
    )
    add_switch(parser, "--count-rows", "count rows although there is a column p_cell")
    parser.add_argument("--regions", metavar="ATLAS", help="per region of this atlas; see `regions --help`")
    _add_draws(parser)
    add_atlas_flags(parser)


def _fill_proximity(parser: Parser) -> None:
    parser.add_argument("cells", metavar="FROM", help="points z, y, x in voxels")
    parser.add_argument("target", metavar="TO", help="points, or a label volume of the same space")
    parser.add_output("--out", required=True, metavar="CURVES.csv", help="the functions, a row a radius")
    parser.add_output("--distances-out", metavar="CELLS.csv", help="also write FROM with distance_um")
    parser.add_output("--figure", metavar="FIG.png", help="G and L with their envelopes")
    add_zyx_um(parser, "--voxel-um", "of the points")
    parser.add_argument(
        "--mask",
        metavar="FILE",
        help="label volume: cells lie in its voxels above 0; default: a box around all",
    )
    add_zyx_um(parser, "--labels-voxel-um", "of TO and mask, where not stated")
    parser.add_argument("--radii-um", nargs="+", type=positive_float, metavar="R", help="default: 20 steps")
    parser.add_argument(
        "--null", choices=["shift", "shuffle"], default="shift",
        help="FROM is moved as a whole (shift) or cell by cell (shuffle); default shift",
    )  # fmt: skip
    _add_draws(parser)


def _add_draws(parser: Parser) -> None:
    parser.add_argument(
        "--draws", type=positive_int, default=99, metavar="N", help="draws of each null model; default 99"
    )
    parser.add_argument("--seed", type=int, default=0, help=SEED_HELP)


def run_coexpress(args: argparse.Namespace) -> dict:
    from pathlib import Path

    from canvas_fm.analysis.coexpression import coexpress, mask_of_tree
    from canvas_fm.analysis.marker_cells import check_names, read_population
    from canvas_fm.data.points.tables import joined, write_table
    from canvas_fm.errors import CanvasError

    names = args.channels or [Path(path).name.partition(".")[0] for path in args.cells]
    if len(names) != len(args.cells):
        raise CanvasError(f"{len(args.cells)} files of cells and {len(names)} names; give one each")
    check_names(names)
    atlas = None if args.regions is None else args.atlas_options.open(args.regions)
    options: dict[str, Any] = {"voxel_um": args.voxel_um} if atlas is None else placing_of(args)
    populations = [
        read_population(path, name=name, atlas=atlas, by_p_cell=not args.count_rows, **options)
        for path, name in zip(args.cells, names, strict=True)
    ]
    pairs = coexpress(
        populations,
        tolerance_um=args.tolerance_um,
        tree=None if atlas is None else atlas.tree,
        domain=None if atlas is None else mask_of_tree(atlas.labels, atlas.tree, atlas.voxel_um),
        draws=args.draws,
        seed=args.seed,
    )
    tables = [pair.table(None if atlas is None else atlas.tree) for pair in pairs]
    write_table(Path(args.out), joined(tables), {})
    if args.cells_out is not None:
        parts = [pair.rows() for pair in pairs]
        write_table(Path(args.cells_out), joined(parts), {})
    result: dict[str, Any] = {"written": args.out, "tolerance_um": args.tolerance_um, "draws": args.draws}
    result["pairs"] = [pair.whole() for pair in pairs]
    return result


def run_proximity(args: argparse.Namespace) -> dict:
    from pathlib import Path

    from canvas_fm.data.points.points import Points
    from canvas_fm.data.points.tables import write_table

    proximity = _proximity_of(args)
    write_table(Path(args.out), proximity.table(), {})
    if args.distances_out is not None:
        points = Points.read(args.cells)
        columns = points.columns | {"distance_um": proximity.distance_um.round(3)}
        Points(points.zyx, columns, points.meta).write(args.distances_out)
    if args.figure is not None:
        from canvas_fm.analysis.proximity.figure import proximity_figure

        proximity_figure(proximity, args.figure)
    return {"written": args.out, **proximity.as_dict()}


def _proximity_of(args: argparse.Namespace) -> Proximity:
    from canvas_fm.analysis.marker_cells import read_um
    from canvas_fm.analysis.null_models import Mask
    from canvas_fm.analysis.proximity.proximity import to_labels, to_points
    from canvas_fm.analysis.regions.label_volume import read_sized
    from canvas_fm.data.points.formats.read_write import suffix_of, suffixes

    options: dict[str, Any] = {
        "radii_um": args.radii_um, "model": args.null, "draws": args.draws, "seed": args.seed
    }  # fmt: skip
    if args.mask is not None:
        labels, size = read_sized(args.mask, args.labels_voxel_um)
        options["domain"] = Mask((labels > 0).astype("int8") - 1, size)
    cells = read_um(args.cells, args.voxel_um)
    if suffix_of(args.target) in suffixes():
        return to_points(cells, read_um(args.target, args.voxel_um), **options)
    labels, size = read_sized(args.target, args.labels_voxel_um)
    return to_labels(cells, labels, size, **options)
