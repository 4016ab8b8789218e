"""Volumes that a command opens, and those of a second channel that go with them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from canvas_fm.cli.parser import Parser
from canvas_fm.errors import CanvasError

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume


def add_companion(parser: Parser, flag: str, help: str, *, several: bool = False) -> None:
    """Add `--background` or `--masks`, a volume that goes with another one, and the flag of its channel."""
    parser.add_argument(flag, nargs="+" if several else None, metavar="VOLUME", help=help)
    parser.add_argument(
        f"{flag}-c",
        type=int,
        metavar="INDEX",
        help=f"channel of {flag}, where it has more than one; default: as --c",
    )


def open_volume(args: argparse.Namespace) -> Volume:
    """The volume of a command that takes one."""
    from canvas_fm.data.volume.volume import Volume

    return Volume.open(args.volume, **args.volume_options.explicit)


def open_volumes(args: argparse.Namespace) -> list[Volume]:
    """The volumes of a command that takes several."""
    from canvas_fm.data.volume.volume import Volume

    return [Volume.open(path, **args.volume_options.explicit) for path in args.volumes]


def open_companions(
    args: argparse.Namespace, flag: str, volumes: Sequence[Volume], paths: Sequence[str] | None
) -> list[Volume] | None:
    """The volumes of `--background` or `--masks`, opened as `volumes` are, but for their channel.

    Their voxel size is that of `volumes`. Raises CanvasError where one is the very channel that it should go
    with; that there is one for each volume is seen where they are used.
    """
    from canvas_fm.data.volume.volume import Volume

    if paths is None:
        return None
    channel = getattr(args, f"{flag}_c")
    options = args.volume_options.explicit | ({} if channel is None else {"c": channel})
    if len(paths) != len(volumes):
        return [Volume.open(path, **options) for path in paths]
    companions = []
    for path, volume in zip(paths, volumes, strict=True):
        companion = Volume.open(path, **options | {"voxel_um": volume.voxel_um})
        same_channel = (companion.options["c"] or 0) == (volume.options["c"] or 0)
        if companion.path.resolve() == volume.path.resolve() and same_channel:
            raise CanvasError(
                f"--{flag} {companion.path} is the volume itself; give another volume, or --{flag}-c INDEX "
                "for another channel of it"
            )
        companions.append(companion)
    return companions


def open_background(args: argparse.Namespace, volume: Volume) -> Volume | None:
    """The volume of `--background` of a command that takes one volume."""
    paths = None if args.background is None else [args.background]
    companions = open_companions(args, "background", [volume], paths)
    return companions[0] if companions else None
