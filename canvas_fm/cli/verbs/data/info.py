"""Verbs `info` and `phantom`."""

from __future__ import annotations

import argparse

from canvas_fm.cli.parser import (
    ZYX,
    Parser,
    Verbs,
    add_switch,
    add_verb,
    add_volume_flags,
    add_zyx_um,
    positive_int,
)

# The same as canvas_fm.data.phantom.phantom.MARKERS, which is not imported before a verb runs (compared
# by a test).
MARKERS = ("NeuN", "cFos", "TH", "PV", "GFAP", "IBA1")


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "info",
        run_info,
        "say what a path is: volume, run, encoder, embeddings, points",
        "Say what a path is and what it holds: a volume (store or TIFF planes), a training run, an encoder, "
        "embeddings or a file of points. A dozen lines; all of it with --all or --json.",
        fill=_fill_info,
    )
    add_verb(
        verbs,
        "list",
        run_list,
        "list shipped models, recipes and samples",
        "List what ships with the package, a line each: models, recipes and samples, which verbs take by "
        "name (a sample as sample:NAME).",
    )
    add_verb(
        verbs,
        "phantom",
        run_phantom,
        "write a synthetic six-marker brain with true cells",
        "Write OUT/MARKER/raw.zarr, mask.zarr, centroids.csv and meta.json for each marker: a synthetic "
        "brain whose cells are known, the same for the same seed.",
        fill=_fill_phantom,
        check=_phantom_faults,
    )


def run_list(args: argparse.Namespace) -> None:
    import json

    from canvas_fm.files.shipped import catalogue

    entries = catalogue()
    if args.json:
        print(json.dumps(entries, indent=2))
        return
    width = max(len(name) for names in entries.values() for name in names)
    for kind, names in entries.items():
        print(f"{kind}s")
        for name, line in names.items():
            print(f"  {name:<{width}}  {line}")


def _fill_info(info: Parser) -> None:
    info.add_argument("path", metavar="PATH", help="any artefact, or the name of a shipped model")
    add_switch(info, "--all", "everything that is known of it, as with --json")
    add_volume_flags(info)


def add_synthetic(parser: Parser, shape_zyx: tuple[int, int, int]) -> None:
    """Add the flags of synthetic brains: size, markers and seed."""
    sizes = " ".join(map(str, shape_zyx))
    parser.add_argument(
        "--shape", nargs=3, type=positive_int, default=shape_zyx, metavar=ZYX, help=f"voxels; default {sizes}"
    )
    parser.add_argument(
        "--markers", nargs="+", default=list(MARKERS), metavar="MARKER", help=f"default {' '.join(MARKERS)}"
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")


def _fill_phantom(phantom: Parser) -> None:
    phantom.add_argument("out", metavar="OUT", help="folder to write")
    add_synthetic(phantom, (64, 192, 192))
    add_zyx_um(phantom, "--voxel-um", "voxel size in micrometres; default 4.0 1.8 1.8")
    phantom.add_argument(
        "--no-stripes", dest="stripes", action="store_false", help="leave the light sheet's stripes out"
    )
    phantom.add_argument(
        "--no-shading", dest="shading", action="store_false", help="leave uneven illumination out"
    )
    add_switch(
        phantom,
        "--regions",
        "OUT/regions.zarr too, a label volume of synthetic regions, and their names in OUT/regions.csv",
    )
    phantom.add_argument(
        "--randomise",
        nargs="+",
        type=int,
        metavar="SEED",
        help="instead of the six markers one brain of random looks for each seed, in OUT/random-SEED; its "
        "voxel size is drawn too unless --voxel-um is given",
    )
    phantom.add_argument("--kind", choices=["nuclei", "somata"], help="of --randomise; default drawn")
    add_switch(
        phantom,
        "--autofluorescence",
        "of --randomise: bodies that look like cells and are none, and background.zarr, a channel that "
        "shows them and hardly the cells",
    )
    add_switch(phantom, "--sheet", "of --randomise: only OUT, a PNG with a slab of each")


def run_info(args: argparse.Namespace) -> dict:
    from canvas_fm.viewing.info.describe import describe
    from canvas_fm.viewing.info.summary import brief

    described = describe(args.path, **args.volume_options.explicit)
    return described if args.all or args.json else brief(described)


def _phantom_faults(args: argparse.Namespace) -> list[str]:
    if args.randomise is None and (args.kind or args.sheet or args.autofluorescence):
        return ["--kind, --autofluorescence and --sheet go with --randomise SEED"]
    if args.randomise is not None and args.regions:
        return ["--regions goes with --markers, not with --randomise"]
    return []


def run_phantom(args: argparse.Namespace) -> dict:
    from canvas_fm.data.phantom.phantom import write_phantom
    from canvas_fm.data.phantom.regions import write_phantom_regions
    from canvas_fm.files.atomic import removed_on_error

    if args.randomise is not None:
        return run_randomised(args)
    shape, voxel_um = tuple(args.shape), tuple(args.voxel_um or (4.0, 1.8, 1.8))
    written: dict[str, str] = {}
    with removed_on_error() as new:
        if args.regions:
            labels, table = write_phantom_regions(args.out, shape, voxel_um=voxel_um, seed=args.seed)
            written = {"regions": str(labels), "table": str(table)}
            new += [labels, table]
        folders = write_phantom(
            args.out,
            shape_zyx=shape,
            markers=tuple(args.markers),
            seed=args.seed,
            voxel_um=voxel_um,
            stripes=args.stripes,
            shading=args.shading,
        )
    written |= {marker: str(folder / "raw.zarr") for marker, folder in folders.items()}
    return written


def run_randomised(args: argparse.Namespace) -> dict:
    from canvas_fm.data.phantom.randomised.parameter_ranges import Autofluorescence, Families
    from canvas_fm.data.phantom.randomised.write import write_random_phantom
    from canvas_fm.files.atomic import removed_on_error
    from canvas_fm.viewing.phantom_sheet import phantom_sheet

    options = {
        "shape_zyx": tuple(args.shape),
        "voxel_um": None if args.voxel_um is None else tuple(args.voxel_um),
        "kind": args.kind,
        "families": Families(autofluorescence=Autofluorescence() if args.autofluorescence else None),
    }
    if args.sheet:
        return {"sheet": str(phantom_sheet(args.randomise, args.out, **options))}
    with removed_on_error() as folders:
        for seed in args.randomise:
            folders.append(write_random_phantom(args.out, seed, **options))
    seeds = map(str, args.randomise)
    return {seed: str(folder / "raw.zarr") for seed, folder in zip(seeds, folders, strict=True)}
