"""`demo`."""

from __future__ import annotations

import argparse

from canvas_fm.cli.options import Verbs, add_json, add_verb


def add_verbs(verbs: Verbs) -> None:
    demo = add_verb(
        verbs,
        "demo",
        run_demo,
        "everything on a synthetic brain, in a few minutes",
        "Write two synthetic brains, pretrain a small encoder on one, serve it, check that HTTP, command "
        "line and Python give the same embeddings, and leave a page with what came of it in DIR/index.html.",
    )
    demo.add_argument(
        "--out", default="demo", metavar="DIR", help="default demo; an earlier demo there is replaced"
    )
    demo.add_argument("--seed", type=int, default=0, help="default 0")
    add_json(demo)


def run_demo(args: argparse.Namespace) -> None:
    pass
