"""Verb `push`: a model uploaded to the Hugging Face hub."""

from __future__ import annotations

import argparse

from canvas_fm.cli.parser import Parser, Verbs, add_switch, add_verb


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "push",
        run_push,
        "upload a model to the Hugging Face hub, with its card",
        "Upload the config, weights and card of a MODEL to hf://owner/name, which is made where it is not "
        "there. Log in before by `hf auth login`. Every verb takes the printed address as its MODEL.",
        fill=_fill_push,
    )


def _fill_push(push: Parser) -> None:
    push.add_argument("model", metavar="MODEL", help="a model's folder, or the name of a shipped one")
    push.add_argument("to", metavar="hf://OWNER/NAME", help="repository to write")
    add_switch(push, "--private", "make the repository private, where it is new")


def run_push(args: argparse.Namespace) -> dict:
    from canvas_fm.models.folder.push import push

    pushed = push(args.model, args.to, private=args.private)
    return {"address": pushed.address, "page": pushed.url, "files": ", ".join(pushed.files)}
