"""Verbs `serve` and `store`."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from canvas_fm.cli.parser import Parser, Verbs, add_switch, add_verb


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "serve",
        run_serve,
        "embeddings over HTTP",
        "Serve models until SIGTERM or Ctrl-C: POST /v1/embed takes crops as .npy, POST /v1/embed/points the "
        "name of a --volume and points, POST /v1/detect a volume and a box, POST /v1/search the name of an "
        "--index, POST /v1/reconstruct a crop. The page at /ui shows all of it, GET /v1/openapi.json "
        "describes it, /livez, /readyz and /metrics tell the rest.",
        fill=_fill_serve,
        json=False,
        check=lambda args: read_limits(args.limit)[1],
        addresses=True,
    )
    add_verb(
        verbs,
        "store",
        run_store,
        "put an encoder into BentoML's model store",
        "Copy an encoder into BentoML's model store (BENTOML_HOME, by default ~/bentoml) and print its tag, "
        "whose version is the front of its sha256; `bentoml build` in a checkout packs the newest of that "
        "name. With --find print the folder of a stored one, checked, which every verb takes as its MODEL.",
        fill=_fill_store,
        json=False,
    )


def _fill_serve(serve: Parser) -> None:
    from serving.protocol.serve_flags import ServedVolume, ServeOptions

    serve.add_argument(
        "models",
        nargs="*",
        type=_model,
        metavar="[NAME=]MODEL",
        help="folders or shipped names of encoders and detectors; the first encoder answers where a request "
        "names none; a detector alone will do; may stand in the settings file",
    )
    serve.add_argument(
        "--settings",
        metavar="FILE.yaml",
        help="what is served, options and limits as YAML, by the names of the keywords of `canvas_fm.serve`; "
        "flags come before it; default the file that CANVAS_FM_SETTINGS names in the environment",
    )
    serve.add_volumes(
        "volumes",
        ServedVolume,
        "volumes whose points may be embedded by name, nothing else can be read; with --allow-remote "
        "also https://HOST/path/brain.zarr or s3://BUCKET/key, which no other verb reads; again for volumes "
        "that are opened otherwise: --volume a=A.zarr --c 0 --volume b=A.zarr --c 1",
    )
    for flag, help_text in (
        ("refiner", "refiners for POST /v1/refine, whose models are served or shipped, by name"),
        ("index", "indexes that may be searched, by name"),
    ):
        serve.add_argument(
            f"--{flag}",
            nargs="+",
            action="extend",
            type=_named_path,
            default=[],
            metavar="NAME=PATH",
            help=help_text,
        )
    serve.add_argument(
        "--limit",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change a limit, for example max_body_mb=64 or max_points=1000; `GET /v1/info` lists them",
    )
    serve.add_options("options", ServeOptions)


def _fill_store(store: Parser) -> None:
    store.add_argument(
        "model", metavar="MODEL", help="an encoder's folder or shipped name; with --find a tag"
    )
    either = store.add_mutually_exclusive_group()
    either.add_argument("--name", default="canvas-fm", help="name in the store; default canvas-fm")
    add_switch(either, "--find", "print the folder of the stored model MODEL")


def run_store(args: argparse.Namespace) -> None:
    from serving.launch.bento.model_store import get, put

    print(get(args.model) if args.find else put(args.model, args.name))


def run_serve(args: argparse.Namespace) -> None:
    from serving.launch.serve import serve
    from serving.launch.settings_file import merged

    first, *further = args.models or [("", None)]
    named = {
        "volumes": args.volumes,
        "models": dict(further),
        "refiners": dict(args.refiner),
        "indexes": dict(args.index),
    }
    typed = args.options.explicit | ({"name": first[0]} if first[0] else {})
    serve(
        **merged(args.settings, first[1], named, read_limits(args.limit)[0], typed),
        announce=lambda address: print(f"canvas-fm: serving on {address}", file=sys.stderr, flush=True),
    )


def read_limits(texts: list[str]) -> tuple[Any, list[str]]:
    """The service's limits with some changed by KEY=VALUE, and a sentence for each that is wrong."""
    from pydantic import ValidationError

    from serving.protocol.settings import Limits

    settings, faults = {}, []
    for item in texts:
        key, equals, value = item.partition("=")
        if equals:
            settings[key] = value
        else:
            faults.append(f"--limit {item!r} was given; KEY=VALUE was expected, for example max_body_mb=64")
    try:
        return Limits.model_validate(settings), faults
    except ValidationError as problem:
        for fault in problem.errors():
            key = ".".join(map(str, fault["loc"]))
            if fault["type"] == "extra_forbidden":
                faults.append(f"no limit is called {key!r}; known: {', '.join(Limits.model_fields)}")
            else:
                faults.append(f"--limit {key}={fault['input']}: {fault['msg'].lower()}")
        return None, faults


def _named_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH, for example cube=brain.zarr")
    return name, path


def _model(text: str) -> tuple[str, str]:
    """Parse NAME=MODEL, or MODEL by the name of its folder."""
    from pathlib import Path

    from canvas_fm.files.hub import address_name
    from canvas_fm.files.shipped import is_address

    if is_address(text):
        return address_name(text), text
    name, equals, path = text.partition("=")
    if equals and name and path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise argparse.ArgumentTypeError(
                f"the name {name!r} of a model may hold letters, digits, '.', '_' and '-'"
            )
        return name, path
    folder = Path(text)
    return folder.parent.name if folder.name in ("encoder", "detector") else folder.name, text
