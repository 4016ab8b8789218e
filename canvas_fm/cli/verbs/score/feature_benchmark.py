"""Verb `feature-benchmark`: benchmark of frozen features against untrained ones, PCA and shape."""

from __future__ import annotations

import argparse

from canvas_fm.cli.open_volumes import open_volumes
from canvas_fm.cli.parser import Parser, Verbs, add_verb, add_volume_flags, positive_int


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "feature-benchmark",
        run_feature_benchmark,
        "benchmark frozen features of encoders on labelled cells of other brains",
        "Measure an encoder's frozen features on labelled cells of two or more brains, each brain scored by "
        "the others: linear read-outs on few and on all labels, nearest neighbours with brightness matched, "
        "and how often a cell under another gain, blur, noise and shift is nearest to itself; beside "
        "untrained encoders, PCA-64 and shape features, with intervals of the paired differences.",
        fill=_fill_feature_benchmark,
    )


def _fill_feature_benchmark(verb: Parser) -> None:
    verb.add_argument("encoders", nargs="+", metavar="MODEL", help="one or more encoders of one architecture")
    verb.add_argument("--volumes", nargs="+", required=True, metavar="VOLUME", help="two or more volumes")
    verb.add_argument("--points", nargs="+", required=True, metavar="FILE", help="their cells, one file each")
    verb.add_argument(
        "--labels", metavar="COLUMN", help="class of each point, -1 skipped; default: the volume's marker"
    )
    verb.add_argument(
        "--brains", nargs="+", metavar="NAME", help="which brain each volume is of; default: one each"
    )
    verb.add_argument("--test", nargs="+", metavar="NAME", help="brains that are scored; default all")
    verb.add_argument(
        "--few", nargs="+", type=positive_int, default=[20, 100], metavar="N", help="default 20 100"
    )
    verb.add_argument("--draws", type=positive_int, default=10, metavar="N", help="of few labels; default 10")
    verb.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="untrained twins; default 3")
    verb.add_argument(
        "--max-cells", type=positive_int, default=150, metavar="N", help="of a class and volume; default 150"
    )
    verb.add_argument(
        "--pool", choices=["mean", "cls", "centre", "contrast"], help="default: the encoder's own"
    )
    verb.add_argument(
        "--finetune", type=positive_int, default=0, metavar="BLOCKS",
        help="fit the encoders' last blocks on the same labels too; takes minutes a brain",
    )  # fmt: skip
    verb.add_output("--out", metavar="JSON", help="write the whole report too")
    add_volume_flags(verb)


def run_feature_benchmark(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from canvas_fm.cli.output import print_result, report_bad_chunks
    from canvas_fm.files.atomic import write_text_atomic
    from canvas_fm.heads.feature_benchmark.benchmark import open_points, read_cells, score_features, summary
    from canvas_fm.models.load_model import load

    encoders = {encoder.name: encoder for encoder in (load(name, kind="encoder") for name in args.encoders)}
    volumes = open_volumes(args)
    cells = read_cells(
        next(iter(encoders.values())),
        volumes,
        open_points(args.points),
        labels=args.labels,
        brains=args.brains,
        max_cells=args.max_cells,
    )
    report = score_features(
        encoders,
        cells,
        test=args.test,
        labels=args.few,
        draws=args.draws,
        seeds=args.seeds,
        pool=args.pool,
        finetune=args.finetune,
    )
    skipped = report_bad_chunks(volumes)
    if args.out:
        write_text_atomic(Path(args.out), json.dumps(report, indent=1) + "\n")
    if args.json:
        print_result(report | skipped, True)
    else:
        print(summary(report))
