"""Verbs `probe fit` and `probe apply`."""

from __future__ import annotations

import argparse

from canvas_fm.cli.parser import Parser, Verbs, add_group, add_switch, add_verb, positive_int
from canvas_fm.errors import counted


def add_verbs(verbs: Verbs) -> None:
    group = add_group(
        verbs,
        "probe",
        "what embeddings say of a label",
        "Fit a logistic probe on embeddings, or put one to further embeddings.",
    )
    add_verb(
        group,
        "fit",
        run_fit,
        "fit a probe on labelled embeddings and say what it is worth",
        "Fit a logistic probe along a path of penalties and write PROBE. Printed is what it reaches on "
        "groups that it was not fitted on: balanced accuracy, AUC and F1 with intervals, beside nearest "
        "neighbours, the embedding's effective rank, and what more labels would bring.",
        fill=_fill_fit,
    )
    add_verb(
        group,
        "apply",
        run_apply,
        "the probability of each class for embeddings",
        "Write the points of X.emb.zarr with a probability for each class, rows in their order, all columns "
        "kept.",
        fill=_fill_apply,
    )


def _fill_fit(fit: Parser) -> None:
    fit.add_argument("embeddings", nargs="+", metavar="X.emb.zarr", help="one or more, of one encoder")
    fit.add_argument(
        "--labels",
        required=True,
        metavar="COLUMN",
        help="column of the classes, numbers or text; -1 or nothing is no label",
    )
    fit.add_argument(
        "--groups", metavar="COLUMN", help="column of the brain of each row; default: a store's volume"
    )
    fit.add_argument("--out", required=True, metavar="PROBE", help="folder to write")
    fit.add_argument(
        "--correction",
        choices=["none", "centre", "standardise", "whiten"],
        default="none",
        help="correct each store's embeddings by all of its own first; default none",
    )
    fit.add_argument("--folds", type=positive_int, default=5, metavar="N", help="at most; default 5")
    add_switch(
        fit,
        "--force-random-split",
        "split one brain's cells at random; says nothing about another brain, and is marked",
    )
    fit.add_argument(
        "--curve",
        nargs="+",
        type=positive_int,
        default=[20, 50, 100, 500, 2000],
        metavar="N",
        help="numbers of labels of the label curve; default 20 50 100 500 2000",
    )
    fit.add_argument(
        "--seeds", type=positive_int, default=5, metavar="N", help="draws of labels for each; default 5"
    )
    fit.add_argument("--seed", type=int, default=0, help="default 0")
    add_switch(fit, "--overwrite", "replace PROBE where it is there already")


def _fill_apply(apply: Parser) -> None:
    apply.add_argument("probe", metavar="PROBE", help="folder that `probe fit` wrote")
    apply.add_argument("embeddings", metavar="X.emb.zarr", help="of the same encoder")
    apply.add_output("--out", required=True, metavar="CELLS", help="file to write: .csv or .parquet")


def run_fit(args: argparse.Namespace) -> dict:
    from canvas_fm.heads.probe.cross_validate import probe_fit

    probe, score = probe_fit(
        args.embeddings,
        args.out,
        labels=args.labels,
        groups=args.groups,
        correction=args.correction,
        folds=args.folds,
        force_random=args.force_random_split,
        counts=args.curve,
        seeds=args.seeds,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    result = {"probe": args.out, "sha256": probe.config.sha256, **score.to_json()}
    return result if args.json else {**_for_people(result), "probe": args.out}


def run_apply(args: argparse.Namespace) -> dict:
    from canvas_fm.heads.probe.probe import Probe
    from canvas_fm.inference.embed.store.embedding_store import Embeddings

    probe = Probe.open(args.probe)
    points = probe.apply(Embeddings.open(args.embeddings))
    points.write(args.out)
    predicted = points.columns["predicted"].tolist()
    counts = {name: predicted.count(name) for name in probe.classes}
    return {"written": args.out, "rows": len(points), "predicted": counts}


def _for_people(result: dict) -> dict:
    """The main figures as lines; --json has all."""

    def shown(figure: dict | None) -> str:
        return (
            "–"
            if figure is None
            else "{:.3f} ({:.3f} to {:.3f})".format(figure["value"], *figure["interval"])
        )

    lines: dict = {
        "rows": f"{result['rows']:,} labelled, {result['skipped']:,} skipped, of "
        f"{counted(result['groups'], 'group')}",
        "classes": result["classes"],
        "split": f"{counted(result['split']['folds'], 'fold')} by {result['split']['by']}",
    }
    if result["split"]["warning"]:
        lines["marked"] = result["split"]["warning"]
    for name, figures in result["methods"].items():
        metrics = (("balanced accuracy", "balanced_accuracy"), ("AUC", "auc"), ("F1", "f1"))
        lines[name] = ", ".join(f"{word} {shown(figures[key])}" for word, key in metrics)
    lines["effective rank"] = f"{result['effective_rank']:.1f} of {result['dim']}"
    curve = result["label_curve"]
    points = (f"{point['labels']:,}: {point['mean']:.3f}" for point in curve["points"])
    lines["labels"] = f"{curve['figure']} with " + ", ".join(points)
    lines["worth"] = curve["sentence"]
    if result["notes"]:
        lines["notes"] = "; ".join(result["notes"])
    return lines
