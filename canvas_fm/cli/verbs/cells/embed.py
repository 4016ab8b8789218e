"""Verbs `embed`, `export` and `reconstruct`."""

from __future__ import annotations

import argparse

from canvas_fm.cli.open_volumes import add_companion, open_background, open_volume
from canvas_fm.cli.parser import (
    ZYX,
    Parser,
    Verbs,
    add_switch,
    add_verb,
    add_volume_flags,
    add_workers,
    positive_int,
)


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "embed",
        run_embed,
        "one embedding per point of a volume",
        "Embed the crop around each point and write X.emb.zarr, rows in the order given. The same command "
        "again resumes.",
        fill=_fill_embed,
    )
    add_verb(
        verbs,
        "export",
        run_export,
        "embeddings as .npz, .parquet or .h5ad",
        "Write embeddings in another format.",
        fill=_fill_export,
    )
    add_verb(
        verbs,
        "reconstruct",
        run_reconstruct,
        "what the decoder makes of one masked crop",
        "Mask a crop, reconstruct it and write the four-row figure: original, masked input, reconstruction, "
        "and visible and reconstructed patches merged. Prints PSNR and SSIM beside trivial predictors.",
        fill=_fill_reconstruct,
    )


def _fill_embed(embed: Parser) -> None:
    from canvas_fm.inference.run_flags import EmbedOptions

    embed.add_argument("model", metavar="MODEL", help="an encoder's folder, or the name of a shipped model")
    embed.add_argument("volume", metavar="VOLUME")
    where = embed.add_mutually_exclusive_group(required=True)
    where.add_argument("--points", metavar="FILE", help="CSV or Parquet with z,y,x in voxels of level 0")
    where.add_argument(
        "--grid", nargs=3, type=positive_int, metavar=ZYX, help="a regular grid with this step in voxels"
    )
    embed.add_argument("--out", required=True, metavar="X.emb.zarr", help="store to write")
    add_companion(embed, "--background", "second channel of an encoder that takes one")
    add_workers(embed)
    embed.add_options("options", EmbedOptions)
    add_volume_flags(embed)


def _fill_export(export: Parser) -> None:
    export.add_argument("embeddings", metavar="X.emb.zarr")
    export.add_argument("out", metavar="OUT", help="its ending chooses: .npz, .parquet or .h5ad (AnnData)")
    add_switch(export, "--overwrite", "replace OUT where it is there already")


def _fill_reconstruct(reconstruct: Parser) -> None:
    from canvas_fm.inference.run_flags import EncoderRun

    reconstruct.add_argument(
        "model", metavar="MODEL", help="an encoder's folder with its decoder, or a shipped name"
    )
    reconstruct.add_argument("volume", metavar="VOLUME")
    reconstruct.add_output("--out", required=True, metavar="FIG.png", help="figure to write")
    reconstruct.add_argument(
        "--at",
        nargs=3,
        type=float,
        metavar=ZYX,
        help="the crop's centre in voxels of level 0; default: a crop with signal, drawn by the seed",
    )
    reconstruct.add_argument(
        "--mask-ratio",
        type=float,
        help="share of patches that is masked; default: what the model was trained with",
    )
    reconstruct.add_argument("--seed", type=int, default=0, help="draws the mask, and the crop without --at")
    reconstruct.add_options("options", EncoderRun, only=["device", "resample", "ignore_voxel_size"])
    add_volume_flags(reconstruct)


def run_embed(args: argparse.Namespace) -> dict:
    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.data.points.points import Points
    from canvas_fm.inference.embed.embed import embed_to_store
    from canvas_fm.inference.embed.grid_points import grid_points
    from canvas_fm.models.load_model import load

    volume = open_volume(args)
    points = None if args.points is None else Points.read(args.points)
    encoder = load(args.model, kind="encoder")
    if points is None:
        size = {"resample": args.options.resample, "ignore_voxel_size": args.options.ignore_voxel_size}
        points = grid_points(volume, encoder.config, tuple(args.grid), **size)
    background = open_background(args, volume)
    processes = {"workers": args.workers, "scheduler": args.scheduler}
    embeddings = embed_to_store(
        encoder, volume, points, args.out, background=background, **processes, **args.options.explicit
    )
    skipped = report_bad_chunks([volume] if background is None else [volume, background])
    rows, *row_shape = embeddings.whole_shape
    result = {
        "embeddings": args.out,
        "rows": rows,
        "dim": row_shape[0] if len(row_shape) == 1 else row_shape,
        "pool": embeddings.pool,
        "encoder": embeddings.encoder_sha256,
    }
    return result | skipped


def run_export(args: argparse.Namespace) -> dict:
    from canvas_fm.inference.embed.store.embedding_store import Embeddings
    from canvas_fm.inference.embed.store.export import export

    embeddings = Embeddings.open(args.embeddings)
    export(embeddings, args.out, overwrite=args.overwrite)
    rows, *row_shape = embeddings.whole_shape
    dim = row_shape[0] if len(row_shape) == 1 else row_shape
    return {"written": args.out, "rows": rows, "dim": dim}


def run_reconstruct(args: argparse.Namespace) -> dict:
    from canvas_fm.cli.output import report_bad_chunks
    from canvas_fm.models.load_model import load
    from canvas_fm.viewing.reconstruction import reconstruct

    volume = open_volume(args)
    scores = reconstruct(
        load(args.model, kind="encoder"),
        volume,
        args.out,
        at_zyx=args.at,
        mask_ratio=args.mask_ratio,
        seed=args.seed,
        **args.options.explicit,
    )
    report_bad_chunks([volume])
    return scores
