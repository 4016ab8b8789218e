"""`serve` and `store`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from canvas_fm.cli.options import (
    Verbs,
    add_device,
    add_precision,
    add_verb,
    add_voxel_size_flags,
    positive_int,
)


def add_verbs(verbs: Verbs) -> None:
    serve = add_verb(
        verbs,
        "serve",
        run_serve,
        "embeddings over HTTP",
        "Serve a model until SIGTERM or Ctrl-C: POST /v1/embed takes crops as .npy, POST /v1/embed/points "
        "the name of a --volume and points, POST /v1/search the name of an --index, POST /v1/reconstruct a "
        "crop. The page at /ui shows all of it, GET /v1/openapi.json describes it, /livez, /readyz and "
        "/metrics tell the rest.",
    )
    serve.add_argument("model", metavar="MODEL", help="an encoder's folder, or the name of a shipped model")
    serve.add_argument(
        "--volume",
        nargs="+",
        action="extend",
        type=_named_path,
        default=[],
        metavar="NAME=PATH",
        help="volumes whose points may be embedded by name, nothing else can be read; with --allow-remote "
        "also https://HOST/path/brain.zarr or s3://BUCKET/key, which no other verb reads",
    )
    for flag, what in (
        ("model", "further models, or detectors that a refiner needs"),
        ("refiner", "refiners for POST /v1/refine, whose models are served or shipped"),
        ("index", "indexes that may be searched"),
    ):
        serve.add_argument(
            f"--{flag}",
            dest=f"named_{flag}",
            nargs="+",
            action="extend",
            type=_named_path,
            default=[],
            metavar="NAME=PATH",
            help=f"{what}, by name",
        )
    serve.add_argument(
        "--jobs",
        metavar="FOLDER",
        help="run jobs (POST /v1/jobs), kept in this folder so that they survive a restart; default none",
    )
    serve.add_argument(
        "--root",
        nargs="+",
        action="extend",
        default=[],
        metavar="FOLDER",
        help="folders below which models and volumes may be added while it runs; default none",
    )
    serve.add_argument(
        "--allow-remote",
        nargs="+",
        action="extend",
        default=[],
        metavar="HOST",
        help="hosts whose Zarr stores a --volume may name, read over https without credentials at the "
        "addresses that the name has at the start; they have to be public, unless written out as "
        "HOST[:PORT]=ADDRESS[,ADDRESS]; default none",
    )
    serve.add_argument(
        "--keys",
        metavar="FILE",
        help="bearer keys, a line `NAME KEY` each, the file readable by you alone; default nobody is asked",
    )
    serve.add_argument(
        "--cors",
        nargs="+",
        action="extend",
        default=[],
        metavar="ORIGIN",
        help="web pages of these origins may read the answers, as https://lab.example; default none",
    )
    serve.add_argument(
        "--log", choices=["text", "json"], default="text", help="json: a line for each request; default text"
    )
    serve.add_argument(
        "--traces",
        metavar="URL",
        help="send spans of requests and batches to an OpenTelemetry collector, as http://127.0.0.1:4318; "
        "needs the extra otel; default nowhere",
    )
    serve.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine only")
    serve.add_argument("--port", type=int, default=3000, help="default 3000; 0 takes a free one")
    serve.add_argument(
        "--workers", type=positive_int, default=1, help="processes, each with its own copy; default 1"
    )
    add_precision(serve, backends=True)
    serve.add_argument(
        "--limit",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change a limit, for example max_body_mb=64 or max_points=1000; `GET /v1/info` lists them",
    )
    add_device(serve)
    add_voxel_size_flags(serve)
    store = add_verb(
        verbs,
        "store",
        run_store,
        "put an encoder into BentoML's model store",
        "Copy an encoder into BentoML's model store (BENTOML_HOME, by default ~/bentoml) and print its tag, "
        "whose version is the front of its sha256; `bentoml build` in a checkout packs the newest of that "
        "name. With --find print the folder of a stored one, checked, which every verb takes as its MODEL.",
    )
    store.add_argument(
        "model", metavar="MODEL", help="an encoder's folder or shipped name; with --find a tag"
    )
    either = store.add_mutually_exclusive_group()
    either.add_argument("--name", default="canvas-fm", help="name in the store; default canvas-fm")
    either.add_argument("--find", action="store_true", help="print the folder of the stored model MODEL")


def run_store(args: argparse.Namespace) -> None:
    from serving.launch.model_store import get, put

    print(get(args.model) if args.find else put(args.model, args.name))


def run_serve(args: argparse.Namespace) -> None:
    from serving.launch.serve import serve

    serve(
        args.model,
        dict(args.volume),
        host=args.host,
        port=args.port,
        workers=args.workers,
        device=args.device,
        precision=args.precision,
        backend=args.backend,
        resample=args.resample,
        ignore_voxel_size=args.ignore_voxel_size,
        limits=read_limits(args.limit),
        models=dict(args.named_model),
        refiners=dict(args.named_refiner),
        indexes=dict(args.named_index),
        jobs=args.jobs,
        roots=args.root,
        allow_remote=args.allow_remote,
        keys=args.keys,
        origins=args.cors,
        log=args.log,
        traces=args.traces,
        announce=lambda address: print(f"canvas-fm: serving on {address}", file=sys.stderr, flush=True),
    )


def read_limits(given: list[str]) -> Any:
    """The service's limits with some changed by KEY=VALUE; a CanvasError names what is wrong."""
    from pydantic import ValidationError

    from canvas_fm.errors import CanvasError
    from serving.protocol.settings import Limits

    settings = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise CanvasError(
                f"--limit {item!r} was given; KEY=VALUE was expected, for example max_body_mb=64"
            )
        settings[key] = value
    try:
        return Limits.model_validate(settings)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise CanvasError(
                f"no limit is called {key!r}; known: {', '.join(Limits.model_fields)}"
            ) from problem
        raise CanvasError(f"--limit {key}={first['input']}: {first['msg'].lower()}") from problem


def _named_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH, for example cube=brain.zarr")
    return name, path
