"""Verbs `segment` and `evaluate-segmentation`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from canvas_fm.cli.open_volumes import open_volume
from canvas_fm.cli.parser import Parser, Verbs, add_verb, add_volume_flags, positive_int

if TYPE_CHECKING:
    from pathlib import Path

    from canvas_fm.data.points.points import Points
    from canvas_fm.data.volume.volume import Volume


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "segment",
        run_segment,
        "grow cells from detections: a label volume and a table of morphology",
        "Threshold watershed seeded by points: writes a label volume (label k is row k of CELLS) and the "
        "table of morphology: volume, sphericity, extents, intensity, with --branches the skeleton's ends, "
        "branching points and length. With --model a pretrained segmenter of your own installation and "
        "weights finds the objects without CELLS.",
        fill=_fill_segment,
    )
    add_verb(
        verbs,
        "evaluate-segmentation",
        run_evaluate,
        "panoptic quality of predicted against true instances",
        "Panoptic quality (PQ), recognition quality (RQ) and segmentation quality (SQ) of two label volumes "
        "in 3D, read block by block; 0 is background, objects match at an IoU above 0.5.",
        fill=_fill_evaluate,
    )


def _fill_segment(parser: Parser) -> None:
    from canvas_fm.analysis.segment.segment_flags import PretrainedOptions, SegmentOptions

    parser.add_argument("volume", metavar="VOLUME", help="the image")
    parser.add_argument(
        "cells", metavar="CELLS", nargs="?", help="points z, y, x in voxels, the seeds of the watershed"
    )
    parser.add_output(
        "--out", folder=True, required=True, metavar="LABELS.zarr", help="label volume to write"
    )
    parser.add_output("--table", required=True, metavar="MORPHOLOGY.csv", help="CELLS with their morphology")
    parser.add_argument(
        "--model", choices=["cellpose-sam", "sam", "micro-sam"],
        help="instead of the watershed, a segmenter that you installed; needs --weights",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="weights of --model, which you downloaded")
    parser.add_options("options", SegmentOptions)
    parser.add_options("pretrained", PretrainedOptions, only=("model_type", "decoder", "torch_device"))
    add_volume_flags(parser)


def _fill_evaluate(parser: Parser) -> None:
    parser.add_argument("predicted", metavar="PRED", help="label volume (.zarr, .tiff, .nrrd, .nii.gz, .npy)")
    parser.add_argument("truth", metavar="TRUTH", help="label volume of the same shape")
    parser.add_argument(
        "--min-voxels", type=positive_int, default=1, metavar="N", help="leave smaller objects out; default 1"
    )
    parser.add_argument(
        "--components", nargs="+", choices=("pred", "truth"), default=(), metavar="SIDE",
        help="take the connected pieces of PRED, TRUTH or both (pred truth), which is a mask of all cells; "
        "it is held in memory",
    )  # fmt: skip
    parser.add_output("--out", metavar="REPORT.json", help="also write the result, with the files' names")
    add_volume_flags(parser, omit=["marker"])


def run_segment(args: argparse.Namespace) -> dict:
    from pathlib import Path

    import numpy as np

    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.files.atomic import new_folder

    volume = open_volume(args)
    with new_folder(Path(args.out)) as folder:  # the table too, or neither
        folder.rmdir()
        cells = _segmented(args, volume, folder)
        cells.write(args.table)
    sizes = np.asarray(cells.columns["volume_um3"])
    result = {
        "written": [args.out, args.table],
        "cells": len(cells),
        "median_volume_um3": float(np.median(sizes)) if len(sizes) else None,
    }
    return result | report_bad_chunks([volume])


def _segmented(args: argparse.Namespace, volume: Volume, out: Path) -> Points:
    from canvas_fm.analysis.segment.pretrained import segment_pretrained
    from canvas_fm.analysis.segment.watershed import segment
    from canvas_fm.data.points.points import Points
    from canvas_fm.errors import CanvasError

    if args.model is None:
        if args.cells is None or args.weights is not None:
            raise CanvasError("the watershed grows from CELLS and has no weights; give CELLS, or --model")
        return segment(volume, Points.read(args.cells), out, **args.options.explicit)
    if args.cells is not None or args.weights is None:
        raise CanvasError(f"{args.model} takes no CELLS and needs --weights FILE, which you downloaded")
    known = ("clip_percentile", "max_radius_um", "branches")
    shared = {key: value for key, value in args.options.explicit.items() if key in known}
    if other := sorted(set(args.options.explicit) - set(known)):
        raise CanvasError(
            f"--{other[0].replace('_', '-')} is of the watershed; {args.model} has no such option"
        )
    return segment_pretrained(args.model, volume, out, args.weights, **shared, **args.pretrained.explicit)


def run_evaluate(args: argparse.Namespace) -> dict:
    import json
    import logging
    from pathlib import Path
    from typing import Any

    from canvas_fm.analysis.regions.label_volume import open_labels
    from canvas_fm.evaluation.metrics.segmentation import connected_components, panoptic_quality
    from canvas_fm.files.atomic import write_text_atomic
    from canvas_fm.version import __version__

    predicted, truth = (
        open_labels(path, **args.volume_options.explicit) for path in (args.predicted, args.truth)
    )
    compared = [
        connected_components(labels) if side in args.components else labels
        for side, labels in (("pred", predicted), ("truth", truth))
    ]
    quality = panoptic_quality(*compared, min_voxels=args.min_voxels)
    if quality.warning:
        logging.getLogger(__name__).warning("%s", quality.warning)
    result: dict[str, Any] = quality.as_dict()
    if args.out is not None:
        about = {"predicted": args.predicted, "truth": args.truth, "canvas_fm": __version__}
        write_text_atomic(Path(args.out), json.dumps(result | about, indent=2) + "\n")
    return result
