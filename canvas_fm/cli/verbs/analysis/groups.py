"""Verb `groups`: groups of brains compared region by region."""

from __future__ import annotations

import argparse
from typing import Any

from canvas_fm.cli.parser import Parser, Verbs, add_verb


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "groups",
        run_groups,
        "compare groups of brains per region: effects, intervals, corrected p-values, power",
        "STUDY.csv has a row a brain: brain, group, and regions, the file that `canvas-fm regions` wrote of "
        "it, or `canvas-fm count --regions` of all brains. "
        "Per region: fold change with 95 % interval, Hedges' g, p-value, q-value (Benjamini and Hochberg), "
        "power of this study, size of the next one. A brain is one sample, however many cells it has.",
        fill=_fill,
    )


def _fill(parser: Parser) -> None:
    from canvas_fm.analysis.groups.group_flags import GroupOptions

    parser.add_argument("study", metavar="STUDY.csv", help="columns brain, group, regions")
    parser.add_output("--out", required=True, metavar="GROUPS.csv", help="table to write")
    parser.add_options("options", GroupOptions)
    parser.add_argument(
        "--repeats", choices=["hemisphere", "channel"],
        help="measurements of one brain that a mixed model takes; default of --model mixed: hemisphere",
    )  # fmt: skip
    parser.add_argument("--channel", metavar="NAME", help="of the regions files, where there are several")
    parser.add_output("--volcano", metavar="FIG.png", help="volcano plot of the first comparison")
    parser.add_output("--heat-map", metavar="FIG.png", help="regions by brains")


def run_groups(args: argparse.Namespace) -> dict:
    from pathlib import Path

    import numpy as np

    from canvas_fm.analysis.groups.compare import compare_with_reference
    from canvas_fm.analysis.groups.figures import region_heat_map, volcano
    from canvas_fm.analysis.groups.study import read_study
    from canvas_fm.data.points.tables import joined, write_table

    options = args.options
    repeats: Any = args.repeats or ("hemisphere" if options.model == "mixed" else None)
    study = read_study(
        args.study,
        channel=args.channel,
        hemisphere=options.hemisphere,
        without_children=options.without_children,
        repeats=repeats,
    )
    comparisons = compare_with_reference(study, options)
    tables = [comparison.table() for comparison in comparisons]
    write_table(Path(args.out), joined(tables), {})
    if args.volcano is not None:
        volcano(comparisons[0], args.volcano)
    if args.heat_map is not None:
        region_heat_map(study, comparisons[0], args.heat_map)
    return {
        "written": args.out,
        "brains": {group: study.groups.count(group) for group in dict.fromkeys(study.groups)},
        "comparisons": [
            {
                "groups": f"{comparison.second} over {comparison.first}",
                "regions_tested": int(comparison.tested.sum()),
                "regions_q_below_5_percent": int((comparison.q_value < 0.05).sum()),
                "median_power": float(np.nanmedian(comparison.power[comparison.tested]))
                if comparison.tested.any()
                else None,
            }
            for comparison in comparisons
        ],
    }
