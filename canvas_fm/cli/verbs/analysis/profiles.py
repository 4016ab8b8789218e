"""Verb `profiles`: what the cells of each region look like, compared between groups of brains."""

from __future__ import annotations

import argparse

from canvas_fm.cli.parser import Parser, Verbs, add_verb


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "profiles",
        run_profiles,
        "compare what cells look like per region between groups: mean embedding, clusters, novelty",
        "STUDY.csv has a row a brain: brain, group, and embeddings, the store that `canvas-fm embed` wrote "
        "of cells with a column `region` (canvas-fm regions --cells-out). Each brain is corrected by its "
        "typical region. A brain is one sample; q-values by Benjamini and Hochberg.",
        fill=_fill,
    )


def _fill(parser: Parser) -> None:
    from canvas_fm.analysis.profiles.profile_flags import ProfileOptions

    parser.add_argument("study", metavar="STUDY.csv", help="columns brain, group, embeddings")
    parser.add_output("--out", required=True, metavar="PROFILES.csv", help="table to write")
    parser.add_options("options", ProfileOptions)
    parser.add_argument(
        "--column", default="region", metavar="NAME", help="column of regions; default region"
    )
    parser.add_output(
        "--examples", metavar="CELLS.csv", help="cells of each cluster, and novel ones, to look at"
    )
    parser.add_output("--figure", metavar="FIG.png", help="novelty and cluster shares by region")


def run_profiles(args: argparse.Namespace) -> dict:
    from pathlib import Path

    from canvas_fm.analysis.profiles.cells import read_profile_study
    from canvas_fm.analysis.profiles.compare import compare_with_reference
    from canvas_fm.analysis.profiles.examples import write_examples
    from canvas_fm.analysis.profiles.figure import profile_figure
    from canvas_fm.data.points.tables import joined, write_table

    options = args.options
    study = read_profile_study(args.study, column=args.column, max_cells=options.max_cells, seed=options.seed)
    comparisons = compare_with_reference(study, options)
    tables = [comparison.table() for comparison in comparisons]
    write_table(Path(args.out), joined(tables), {})
    if args.examples is not None:
        write_examples(comparisons[0], args.examples)
    if args.figure is not None:
        profile_figure(comparisons[0], args.figure)
    return {
        "written": args.out,
        "brains": {group: int(study.of(group).sum()) for group in study.groups},
        "cells": sum(len(brain.region) for brain in study.brains),
        "comparisons": [
            {
                "groups": f"{comparison.second} against {comparison.first}",
                "regions_tested": int(comparison.tested.sum()),
                "regions_with_more_novel_cells": _named(comparison.study.regions, comparison.more_novel),
                "regions_with_another_mean": _named(comparison.study.regions, comparison.shift_q < 0.05),
            }
            for comparison in comparisons
        ],
    }


def _named(regions: tuple[str, ...], mask: object) -> list[str]:
    import numpy as np

    return [regions[at] for at in np.flatnonzero(np.asarray(mask))]
