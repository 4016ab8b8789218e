"""Verb `points`: conversion between point formats."""

from __future__ import annotations

import argparse

from canvas_fm.cli.parser import ZYX, Parser, Verbs, add_group, add_verb, add_zyx_um

# The same as FORMATS of canvas_fm.data.points.formats.read_write, which is not imported before a verb runs: a
# test compares them.
FORMATS = ("csv", "parquet", "xlsx", "napari", "canvas", "cellfinder", "webknossos", "neuroglancer")


def add_verbs(verbs: Verbs) -> None:
    group = add_group(
        verbs,
        "points",
        "convert points between the field's formats",
        "Points in the formats of other programs.",
    )
    add_verb(
        group,
        "convert",
        run_convert,
        "read points in one format and write them in another",
        "Formats go by the suffix (.csv, .tsv, .csv.gz, .xlsx, .parquet, .xml of cellfinder or TrackMate, "
        ".yml of cellfinder, .nml of WebKnossos, .json of Neuroglancer) unless --from or --to name one. "
        "Tables of Imaris, TrackMate, ClearMap and napari are told by their columns.",
        fill=_fill_convert,
    )


def _fill_convert(convert: Parser) -> None:
    convert.add_argument("source", metavar="IN")
    convert.add_output("out", metavar="OUT")
    convert.add_argument("--from", dest="source_format", choices=FORMATS, help="the format of IN")
    convert.add_argument("--to", dest="out_format", choices=FORMATS, help="the format of OUT")
    convert.add_argument(
        "--origin",
        nargs=3,
        type=float,
        metavar=ZYX,
        help="where IN's first voxel lies in the whole brain; added to every position",
    )
    add_zyx_um(
        convert,
        "--voxel-um",
        "the volume's voxel size in µm: needed by .nml and .json, and for positions in µm (Imaris, "
        "TrackMate)",
    )
    convert.add_argument("--columns", nargs=3, metavar=ZYX, help="IN's names of the columns z, y and x")


def run_convert(args: argparse.Namespace) -> dict:
    from canvas_fm.data.points.points import convert_points

    points = convert_points(
        args.source,
        args.out,
        origin_zyx=args.origin,
        voxel_um=None if args.voxel_um is None else tuple(args.voxel_um),
        source_format=args.source_format,
        out_format=args.out_format,
        columns=args.columns,
    )
    return {"written": args.out, "points": len(points), "columns": list(points.columns)}
