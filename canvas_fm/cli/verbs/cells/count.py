"""Verb `count`: cells of volumes, in one command."""

from __future__ import annotations

import argparse
from typing import Any

from canvas_fm.cli.parser import Parser, Verbs, add_list, add_switch, add_verb, add_volume_flags
from canvas_fm.cli.verbs.analysis.regions import add_atlas_flags, placing_of


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "count",
        run_count,
        "count the cells of volumes, per region of an atlas: detect, refine and count in one command",
        "Detect the cells of each volume, refine them, and write one table, brain by region, with 90 % "
        "intervals. Without a refiner these are by the cells per detection on held-out brains, known of the "
        "shipped detectors detector-cfos, detector-microglia and detector-phantoms at their own threshold; "
        "else detections are counted, and the interval is blank. The cells are kept in the folder "
        "COUNTS.cells, where the same command resumes.",
        fill=_fill,
    )


_DETECTION = ("threshold", "device", "precision", "tile_zyx", "resample", "ignore_voxel_size")


def _fill(parser: Parser) -> None:
    from canvas_fm.inference.detect.detect_flags import DetectOptions

    parser.add_argument("volumes", nargs="+", metavar="VOLUME", help="one channel of one brain each")
    parser.add_argument(
        "--detector", required=True, metavar="DETECTOR", help="a detector's folder or shipped name"
    )
    parser.add_argument("--refiner", metavar="REFINER", help="a refiner's folder or shipped name")
    add_list(
        parser,
        "--regions",
        "ATLAS",
        "per region of this atlas (see `regions --help`): one of all volumes, or one for each in their order",
    )
    parser.add_argument("--out", required=True, metavar="COUNTS.csv", help="table to write")
    parser.add_argument("--figure", metavar="FIG.png", help="counts with their intervals")
    add_switch(parser, "--overwrite", "replace COUNTS.csv and FIG.png of other inputs or settings")
    parser.add_options("options", DetectOptions, only=_DETECTION)
    add_atlas_flags(parser, voxel_um="voxel size in µm, where the volumes do not state it")
    add_volume_flags(parser, omit=["voxel_um"])  # which is a flag of the atlas already


def run_count(args: argparse.Namespace) -> dict:
    from math import isnan
    from pathlib import Path

    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.files.checksum import sha256
    from canvas_fm.files.shipped import find
    from canvas_fm.heads.refine.refiner import Refiner
    from canvas_fm.models.load_model import load
    from canvas_fm.pipeline.count_cells import brain_counts, count

    atlas = [args.atlas_options.open(each) for each in args.regions] or None
    placing: dict[str, Any] = {} if atlas is None else placing_of(args)
    placing = {key: value for key, value in placing.items() if value is not None}
    volumes = [
        Volume.open(path, voxel_um=args.voxel_um, **args.volume_options.explicit) for path in args.volumes
    ]
    table = count(
        volumes,
        load(args.detector, kind="detector"),
        args.out,
        refiner=None if args.refiner is None else Refiner.load(find("model", args.refiner)),
        atlas=atlas,
        placing=placing,
        figure=args.figure,
        overwrite=args.overwrite,
        about={
            f"transform {Path(path).name}": sha256(Path(path))
            for path in args.atlas_options.transform
            if atlas
        },
        **args.options.explicit,
    )
    result: dict[str, Any] = {"written": args.out, "rows": len(table["brain"])}
    if args.figure is not None:
        result["figure"] = args.figure
    counts = brain_counts(args.out)
    result["cells"] = {name: value for name, (value, _, _) in counts.items()}
    if atlas is not None:
        own = table["own_count"] * (table["hemisphere"] == "both")
        result["cells_in_regions"] = {name: float(own[table["brain"] == name].sum()) for name in counts}
    known = {name: ends for name, (_, *ends) in counts.items() if not isnan(ends[0])}
    interval: dict[str, Any] = dict(known)
    if not args.json:  # for people an interval is words
        interval = {name: f"{low:g} to {high:g}" for name, (low, high) in known.items()}
    result["interval_90"] = interval or None
    result["count_of"] = ", ".join(dict.fromkeys(table["count_of"].tolist()))
    return result | report_bad_chunks(volumes)
