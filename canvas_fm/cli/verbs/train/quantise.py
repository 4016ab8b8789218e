"""Verb `quantise`."""

from __future__ import annotations

import argparse

from canvas_fm.cli.open_volumes import open_volumes
from canvas_fm.cli.parser import Parser, Verbs, add_verb, add_volume_flags, positive_int
from canvas_fm.cli.verbs.cells.label_flags import add_labelled, labelled


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "quantise",
        run_quantise,
        "int8 for an encoder, and whether it may be used",
        "Quantise an encoder on crops of the volumes to --calibrate, and compare it with fp32 on labelled "
        "candidates of others. Admitted is a pooling where .95 of the 10 nearest neighbours stay and the "
        "F1 of refinement on volumes left out moves by less than .005; `embed`, `refine` and `serve` then "
        "take `--backend openvino --precision int8`. What was found is kept in int8/check.json beside the "
        "encoder, else in the user's cache.",
        fill=_fill_quantise,
    )


def _fill_quantise(quantise: Parser) -> None:
    from canvas_fm.inference.run_flags import VoxelOptions

    quantise.add_argument(
        "model", metavar="MODEL", help="an encoder's folder, or the name of a shipped model"
    )
    quantise.add_argument(
        "--calibrate", nargs="+", required=True, metavar="VOLUME", help="volumes that it was trained on"
    )
    quantise.add_argument(
        "--crops", type=positive_int, default=512, help="crops of them to calibrate on; default 512"
    )
    add_labelled(quantise)
    quantise.add_argument(
        "--max-candidates",
        type=positive_int,
        default=500,
        help="candidates to compare on, of each volume; default 500",
    )
    quantise.add_argument("--seed", type=int, default=0, help="draws crops and candidates; default 0")
    quantise.add_options("voxels", VoxelOptions)
    add_volume_flags(quantise)


def run_quantise(args: argparse.Namespace) -> dict:
    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.heads.quantise import quantise
    from canvas_fm.models.load_model import load

    encoder = load(args.model, kind="encoder")
    volumes = open_volumes(args)
    calibrate = [Volume.open(path, **args.volume_options.explicit) for path in args.calibrate]
    brains = labelled(args, volumes)
    check = quantise(
        encoder,
        brains,
        calibrate,
        crops=args.crops,
        most=args.max_candidates,
        seed=args.seed,
        **args.voxels.explicit,
    )
    skipped = report_bad_chunks([*volumes, *calibrate])
    result = check.model_dump(mode="json") if args.json else _for_people(check.summary())
    return result | skipped


def _for_people(result: dict[str, object]) -> dict[str, object]:
    """One line for each pooling."""
    pools = result.pop("pools")
    assert isinstance(pools, dict)
    lines = {
        f"pool {name}": f"{'admitted' if check['admitted'] else 'not admitted'}: {check['agreement']:.4f} of "
        f"the neighbours stay, F1 moves by {check['f1_move']:.5f}"
        for name, check in pools.items()
    }
    return result | lines
