"""Verb `domains`: detectors trained and scored on many held-out brains."""

from __future__ import annotations

import argparse

from canvas_fm.cli.parser import (
    Parser,
    Verbs,
    add_list,
    add_roi,
    add_switch,
    add_verb,
    add_volume_flags,
    positive_int,
)


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "domains",
        run_domains,
        "score detectors on many held-out brains",
        "Score detectors at their fixed thresholds on labelled volumes that they were not trained on and on "
        "randomised phantoms: the mean and the worst decile of F1, with intervals, next to the best "
        "threshold and a Laplacian of a Gaussian over the median. With --train a recipe is "
        "trained first, once for each fold and seed. OUT then holds domains.json, domains.md, domains.png, "
        "runs/ and curves/; the same command after a kill resumes.",
        fill=_fill_domains,
        check=_domains_faults,
    )


def _fill_domains(domains: Parser) -> None:
    domains.add_argument("out", metavar="OUT", help="folder to write")
    add_list(domains, "--volumes", "VOLUME", "labelled volumes")
    add_list(domains, "--points", "FILE", "their cells, one file a volume, in order")
    add_roi(domains, "boxes in which all cells are labelled", several=True)
    domains.add_argument(
        "--tolerance-um",
        nargs="+",
        type=_tolerance,
        default=[],
        metavar="MARKER=N",
        help="farthest match in µm for the volumes of each marker",
    )
    add_list(
        domains,
        "--pool-small",
        "NAME",
        "volumes with too few cells for a score of their own; they count in the pooled score alone",
    )
    domains.add_argument(
        "--detector",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "MODEL"),
        help="a method's name, and its detectors: one, or those of several folds and seeds; again for more",
    )
    domains.add_argument("--train", metavar="RECIPE", help="train this recipe in folds, as a method more")
    domains.add_argument(
        "--fold",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME",
        help="of --train: volumes that are held out together, again for each fold",
    )
    domains.add_argument("--seeds", nargs="+", type=int, default=[0], help="of --train; default 0")
    domains.add_argument(
        "--set", dest="overrides", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="of --train: change the recipe",
    )  # fmt: skip
    add_list(
        domains, "--never-train-on", "NAME", "volumes only scored: no --train and no --cross-fit takes them"
    )
    add_switch(
        domains,
        "--cross-fit",
        "in place of the detectors' own thresholds take, for each domain, the one that is best on the "
        "other labelled volumes, each scored by a detector that did not see it",
    )
    domains.add_argument(
        "--phantoms",
        type=positive_int,
        default=100,
        metavar="N",
        help="how many of seeds 0 to 999; default 100",
    )
    add_switch(
        domains,
        "--autofluorescence",
        "phantoms with autofluorescent bodies that are no cells, and the background channel that shows "
        "them, which detectors of two channels take",
    )
    domains.add_argument(
        "--only", nargs="+", metavar="GROUP", help="markers, `phantom nuclei`, `phantom somata`; default all"
    )
    add_list(domains, "--test", "NAME", "test volumes: not opened without --final-test")
    add_switch(
        domains,
        "--final-test",
        "score the test volumes and phantoms 1000 to 1099 instead: once, when everything is chosen",
    )
    add_volume_flags(domains)


def _domains_faults(args: argparse.Namespace) -> list[str]:
    """Detectors without a model, and what is wrong with the recipe to train."""
    from canvas_fm.cli.verbs.train.pretrain import recipe_faults

    faults = recipe_faults(argparse.Namespace(recipe=args.train, overrides=args.overrides), "train-detector")
    if any(len(words) < 2 for words in args.detector or []):
        faults.append("--detector takes a name and at least one model: --detector NAME MODEL [MODEL …]")
    return faults


def run_domains(args: argparse.Namespace) -> None:
    from canvas_fm.cli.output import print_result
    from canvas_fm.pipeline.domain_volumes import labelled_domains, phantom_domains
    from canvas_fm.pipeline.score_domains import score_domains, train_in_folds

    tolerances = dict(args.tolerance_um)
    domains = [
        *labelled_domains(
            args.volumes, args.points, args.roi, tolerances, pool_small=args.pool_small,
            test=args.test, final_test=args.final_test, **args.volume_options.explicit,
        ),
        *phantom_domains(args.phantoms, test=args.final_test, autofluorescence=args.autofluorescence),
    ]  # fmt: skip
    if args.only is not None:
        domains = [domain for domain in domains if domain.group in args.only]
    methods = {name: paths for name, *paths in args.detector}
    if args.train is not None:
        methods[args.train] = train_in_folds(
            args.train, domains, args.fold, args.seeds, args.out, args.overrides, never=args.never_train_on
        )
    report = score_domains(args.out, domains, methods, cross_fit=args.cross_fit, never=args.never_train_on)
    if args.json:
        print_result(report, True)
        return
    print_result({"domains": len(domains), "table": f"{args.out}/domains.md"}, False)
    for name, method in report["methods"].items():
        summary = method["all"]
        print(f"{name}: mean {summary['mean']:.3f}, worst decile {summary['worst_decile']:.3f}")


def _tolerance(text: str) -> tuple[str, float]:
    marker, _, value = text.partition("=")
    try:
        return marker, float(value)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(
            f"--tolerance-um takes MARKER=N, for example cFos=8; given {text!r}"
        ) from problem
