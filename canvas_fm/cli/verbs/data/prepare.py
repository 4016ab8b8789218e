"""`convert`, `destripe` and `stitch`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from canvas_fm.cli.parser import Parser, Verbs, add_switch, add_verb, add_workers

if TYPE_CHECKING:
    from canvas_fm.prepare.convert.convert import Conversion

_STRIPES = (
    "stripes_along",
    "stripe_sigma",
    "stripe_level",
    "stripe_foreground",
    "foreground_sigma",
    "wavelet",
)
_WRITING = (
    "on_bad_chunk",
    "missing_chunks",
    "ome",
    "levels",
    "chunk_zyx",
    "memory_gb",
    "threads",
    "checksums",
    "verify",
)
_FLAT = ("flat_field", "flat_method", "flat", "dark", "flat_planes", "flat_degree")


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "convert",
        run_convert,
        "write TIFF planes, HDF5, Imaris, CZI, … as OME-Zarr",
        "Write SRC as OME-Zarr: sharded, with a pyramid, checksums, an intensity window and a checksum of "
        "each source file. SRC is a folder of TIFF planes, a TIFF stack (BigTIFF, OME-TIFF, ImageJ), HDF5, "
        "Imaris, a Zarr store, or with the extra `vendors` CZI, ND2 or LIF; all channels are written. The "
        "same command again resumes.",
        fill=_fill_convert,
    )
    add_verb(
        verbs,
        "destripe",
        run_destripe,
        "convert, and remove the light sheet's stripes",
        "Write SRC as OME-Zarr without the stripes of the light sheet: FFT-wavelet hybrid filter, plane by "
        "plane. As `convert --destripe`. The same command again resumes.",
        fill=_fill_destripe,
    )
    add_verb(
        verbs,
        "stitch",
        run_stitch,
        "put overlapping tiles together as one OME-Zarr",
        "Place the overlapping z-stacks of SRC, folders X/X_Y/Z.tiff as SmartSPIM writes them or tiles that "
        "a table names, by phase correlation and least squares, blend them and write OUT.zarr. Shading and "
        "stripes are removed from each tile before. The same command again resumes.",
        fill=_fill_stitch,
    )


def _fill_convert(convert: Parser) -> None:
    _fill(convert, also=("destripe",))


def _fill_destripe(destripe: Parser) -> None:
    _fill(destripe, also=())


def _fill(parser: Parser, also: tuple[str, ...]) -> None:
    from canvas_fm.prepare.convert_flags import ConvertOptions

    parser.add_argument("source", metavar="SRC", help="what a microscope or another tool wrote")
    parser.add_argument("out", metavar="OUT.zarr", help="store to write")
    add_switch(parser, "--dry-run", "write nothing: say layout, bytes and minutes, measured on a few planes")
    _share_slabs(parser)
    corrections = (*_STRIPES, *_FLAT, "destripe")
    plain = [name for name in ConvertOptions.model_fields if name not in corrections]
    parser.add_options("options", ConvertOptions, only=[*plain, *_FLAT, *also, *_STRIPES])


def _share_slabs(parser: Parser) -> None:
    add_workers(
        parser,
        "processes that share the slabs, each with --memory-gb; default 1, whose threads use all cores",
    )


def _fill_stitch(stitch: Parser) -> None:
    from canvas_fm.prepare.convert_flags import ConvertOptions, StitchOptions

    stitch.add_argument("source", metavar="SRC", help="folder of the tiles of one channel")
    stitch.add_argument("out", metavar="OUT.zarr", help="store to write")
    _share_slabs(stitch)
    own = [name for name in StitchOptions.model_fields if name not in ConvertOptions.model_fields]
    stitch.add_options(
        "options",
        StitchOptions,
        only=["voxel_um", "t", "c", "marker", *own, *_WRITING, *_FLAT, "destripe", *_STRIPES],
    )


def run_stitch(args: argparse.Namespace) -> dict:
    from canvas_fm.cli.output import report_bad_chunks_by_path
    from canvas_fm.prepare.stitch.stitch import stitch

    how = {"workers": args.workers, "scheduler": args.scheduler}
    done = stitch(args.source, args.out, **how, **args.options.explicit).as_dict()
    conversion = done.pop("conversion")
    skipped = report_bad_chunks_by_path({str(args.source): list(conversion.pop("bad_chunks"))})
    return conversion | done | skipped


def run_convert(args: argparse.Namespace) -> dict:
    from canvas_fm.prepare.convert.convert import convert

    return _run(args, convert, {})


def run_destripe(args: argparse.Namespace) -> dict:
    from canvas_fm.prepare.convert.convert import destripe

    return _run(args, destripe, {"destripe": True})


def _run(args: argparse.Namespace, work: Callable[..., Conversion], extra: dict[str, bool]) -> dict:
    from canvas_fm.cli.output import report_bad_chunks_by_path
    from canvas_fm.prepare.convert.preview import preview_conversion

    if args.dry_run:
        return preview_conversion(args.source, args.out, **(args.options.explicit | extra))
    done = work(
        args.source, args.out, workers=args.workers, scheduler=args.scheduler, **args.options.explicit
    )
    skipped = report_bad_chunks_by_path({str(args.source): list(done.bad_chunks)})
    result = done.as_dict()
    result.pop("bad_chunks")
    return result | skipped
