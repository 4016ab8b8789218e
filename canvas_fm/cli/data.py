"""`info` and `phantom`."""

from __future__ import annotations

import argparse

from canvas_fm.cli.options import (
    ZYX,
    Verbs,
    add_json,
    add_verb,
    add_volume_flags,
    positive_float,
    positive_int,
)

# The same as canvas_fm.data.phantom.phantom.MARKERS, which is not imported before a verb runs (compared
# by a test).
MARKERS = ("NeuN", "cFos", "TH", "PV", "GFAP", "IBA1")


def add_verbs(verbs: Verbs) -> None:
    info = add_verb(
        verbs,
        "info",
        run_info,
        "say what a path is: volume, run, encoder, embeddings, points",
        "Say what a path is and what it holds: a volume (store or TIFF planes), a training run, an encoder, "
        "embeddings or a file of points.",
    )
    info.add_argument("path", metavar="PATH", help="any artefact, or the name of a shipped model")
    add_json(info)
    add_volume_flags(info)

    phantom = add_verb(
        verbs,
        "phantom",
        run_phantom,
        "write a synthetic six-marker brain with true cells",
        "Write OUT/MARKER/raw.zarr, mask.zarr, centroids.csv and meta.json for each marker: a synthetic "
        "brain whose cells are known, the same for the same seed.",
    )
    phantom.add_argument("out", metavar="OUT", help="folder to write")
    phantom.add_argument(
        "--shape",
        nargs=3,
        type=positive_int,
        default=(64, 192, 192),
        metavar=ZYX,
        help="voxels; default 64 192 192",
    )
    phantom.add_argument(
        "--markers", nargs="+", default=list(MARKERS), metavar="MARKER", help=f"default {' '.join(MARKERS)}"
    )
    phantom.add_argument("--seed", type=int, default=0, help="default 0")
    phantom.add_argument(
        "--voxel-um",
        nargs=3,
        type=positive_float,
        default=(4.0, 1.8, 1.8),
        metavar=ZYX,
        help="voxel size in micrometres; default 4.0 1.8 1.8",
    )
    phantom.add_argument(
        "--no-stripes", dest="stripes", action="store_false", help="leave the light sheet's stripes out"
    )
    phantom.add_argument(
        "--no-shading", dest="shading", action="store_false", help="leave uneven illumination out"
    )
    add_json(phantom)


def run_info(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import print_result, volume_options
    from canvas_fm.viewing.describe import describe

    print_result(describe(args.path, **volume_options(args)), args.json)


def run_phantom(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import print_result
    from canvas_fm.data.phantom.phantom import write_phantom

    folders = write_phantom(
        args.out,
        shape_zyx=tuple(args.shape),
        markers=tuple(args.markers),
        seed=args.seed,
        voxel_um=tuple(args.voxel_um),
        stripes=args.stripes,
        shading=args.shading,
    )
    print_result({marker: str(folder / "raw.zarr") for marker, folder in folders.items()}, args.json)
