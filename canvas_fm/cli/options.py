"""The flags that several verbs share, and what they become."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.heads.labels.candidates import Candidates

Verbs = argparse._SubParsersAction  # what add_subparsers returns; argparse has no public name for it
ZYX = ("Z", "Y", "X")


def positive_int(text: str) -> int:
    """An argparse type: a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def add_verb(verbs: Verbs, name: str, run: Any, help: str, description: str = "") -> argparse.ArgumentParser:
    """A sub-command whose flags may not be abbreviated: a script keeps its meaning when a flag is added."""
    parser = verbs.add_parser(
        name, help=help, description=description or f"{help[0].upper()}{help[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_volume_flags(parser: argparse.ArgumentParser) -> None:
    """How a volume is opened, the same on every verb that opens one."""
    group = parser.add_argument_group("opening the volume")
    group.add_argument(
        "--voxel-um",
        nargs=3,
        type=positive_float,
        metavar=ZYX,
        help="voxel size in micrometres, where the store does not state it",
    )
    group.add_argument("--t", type=int, metavar="INDEX", help="time point, where there is more than one")
    group.add_argument("--c", type=int, metavar="INDEX", help="channel, where there is more than one")
    group.add_argument(
        "--marker", metavar="NAME", help="the marker, where neither store nor meta.json names it"
    )
    group.add_argument(
        "--on-bad-chunk",
        choices=["error", "skip"],
        default="error",
        help="a damaged chunk stops the work (error), or is read as zeros and reported (skip)",
    )
    group.add_argument(
        "--missing-chunks",
        choices=["error", "empty"],
        default="error",
        help="in a store without a manifest: a chunk that is not there is damage (error) or empty (empty)",
    )


def add_labelled(parser: argparse.ArgumentParser) -> None:
    """Volumes with candidates, and what says which of them are cells."""
    parser.add_argument("--volumes", nargs="+", required=True, metavar="VOLUME", help="one or more volumes")
    parser.add_argument(
        "--candidates",
        nargs="+",
        required=True,
        metavar="FILE",
        help="their candidates, one file a volume, in order",
    )
    parser.add_argument(
        "--labels", metavar="COLUMN", help="column of the candidates: 1 a cell, 0 none, -1 skipped"
    )
    parser.add_argument(
        "--truth",
        nargs="+",
        metavar="FILE",
        help="the true cells, one file a volume; with --labels they only say how many have no candidate",
    )
    parser.add_argument(
        "--tolerance-um", type=positive_float, metavar="N", help="farthest match with a true cell in µm"
    )
    parser.add_argument(
        "--within",
        nargs="+",
        metavar="FILE",
        help="boxes in which everything is labelled, one file a volume: a JSON list of [z0, y0, x0, z1, y1, "
        "x1], or a meta.json with octants; candidates outside are skipped",
    )


def labelled(
    args: argparse.Namespace,
    volumes: list[Volume],
    background: list[Volume] | None = None,
    score: str | None = None,
) -> list[Candidates]:
    """The candidates that the flags of `add_labelled` name, with their labels."""
    from canvas_fm.heads.labels.candidates import label_brains

    return label_brains(
        volumes,
        args.candidates,
        labels=args.labels,
        truth=args.truth,
        tolerance_um=args.tolerance_um,
        within=args.within,
        score=score,
        background=background,
    )


def volume_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `Volume.open` that the flags ask for."""
    return {
        "voxel_um": None if args.voxel_um is None else tuple(args.voxel_um),
        "t": args.t,
        "c": args.c,
        "marker": args.marker,
        "on_bad_chunk": args.on_bad_chunk,
        "missing_chunks": args.missing_chunks,
    }


def open_volume(path: str, args: argparse.Namespace) -> Volume:
    from canvas_fm.data.volume.volume import Volume

    return Volume.open(path, **volume_options(args))


def report_bad_chunks(volumes: list[Volume]) -> dict[str, list[str]]:
    """Name every chunk that was passed over on stderr; the result carries the same list."""
    return say_bad_chunks({str(volume.path): list(volume.bad_chunks) for volume in volumes})


def say_bad_chunks(chunks_of: dict[str, list[str]]) -> dict[str, list[str]]:
    """As `report_bad_chunks`, for lists by path."""
    import sys

    skipped = {path: chunks for path, chunks in chunks_of.items() if chunks}
    for path, chunks in skipped.items():
        print(
            f"canvas-fm: warning: {path}: {len(chunks)} damaged chunks were read as zeros:", file=sys.stderr
        )
        for sentence in chunks:
            print(f"  {sentence}", file=sys.stderr)
    return skipped


def add_voxel_size_flags(parser: argparse.ArgumentParser) -> None:
    """What to do when model and volume differ by more than 5 % in voxel size."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--resample", action="store_true", help="read crops at the model's physical size and resample them"
    )
    choice.add_argument(
        "--ignore-voxel-size", action="store_true", help="use the voxels as they are, whatever their size"
    )


def add_precision(verb: argparse.ArgumentParser, *, backends: bool = False) -> None:
    """`--precision`, and for verbs that run an encoder `--backend`."""
    verb.add_argument(
        "--precision",
        choices=["fp32", "bf16", *(["int8"] if backends else []), "auto"],
        default="fp32",
        help="auto is bf16 where the device has it; default fp32"
        + ("; int8 of openvino, where `canvas-fm quantise` admitted it" if backends else ""),
    )
    if backends:
        verb.add_argument(
            "--backend",
            choices=["torch", "cuda-graphs", "openvino"],
            default="torch",
            help="what the encoder runs on: openvino is for the CPU (extra `cpu`), cuda-graphs for an NVIDIA "
            "GPU; default torch",
        )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N; default auto"
    )


def print_result(
    result: dict[str, Any], as_json: bool, *, bad_chunks: dict[str, list[str]] | None = None
) -> None:
    """One result on stdout: JSON for machines, aligned lines for people, the same keys in both.

    `bad_chunks`, where there are any, are those that `report_bad_chunks` named.
    """
    if bad_chunks:
        result = result | {"bad_chunks": bad_chunks}
    if as_json:
        print(json.dumps(result, indent=2))
        return
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        for number, line in enumerate(_lines(value)):
            print(f"{key if number == 0 else '':{width}}  {line}")


def _lines(value: Any) -> list[str]:
    """A value for people: a list of dictionaries as one line each, what is nested deeper only as JSON."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and any(isinstance(item, dict | list) and item for item in value.values()):
        return ["see --json"]
    return [_plain(value)]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "  ".join(_plain(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    return "none" if value is None else str(value)
