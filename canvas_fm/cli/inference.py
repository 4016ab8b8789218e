"""`embed`, `export` and `reconstruct`."""

from __future__ import annotations

import argparse

from canvas_fm.cli.options import (
    ZYX,
    Verbs,
    add_device,
    add_json,
    add_precision,
    add_verb,
    add_volume_flags,
    add_voxel_size_flags,
    positive_int,
)


def add_verbs(verbs: Verbs) -> None:
    _add_embed(verbs)
    _add_export(verbs)
    _add_reconstruct(verbs)


def _add_embed(verbs: Verbs) -> None:
    embed = add_verb(
        verbs,
        "embed",
        run_embed,
        "one embedding per point of a volume",
        "Embed the crop around each point and write X.emb.zarr, rows in the order given. The same command "
        "again goes on where it stopped.",
    )
    embed.add_argument("model", metavar="MODEL", help="an encoder's folder, or the name of a shipped model")
    embed.add_argument("volume", metavar="VOLUME")
    where = embed.add_mutually_exclusive_group(required=True)
    where.add_argument("--points", metavar="FILE", help="CSV or Parquet with z,y,x in voxels of level 0")
    where.add_argument(
        "--grid", nargs=3, type=positive_int, metavar=ZYX, help="a regular grid with this step in voxels"
    )
    embed.add_argument("--out", required=True, metavar="X.emb.zarr", help="store to write")
    embed.add_argument(
        "--pool",
        choices=["mean", "cls", "centre", "contrast", "tokens", "grid"],
        help="default: what the encoder's config names; tokens and grid: a vector for each patch",
    )
    embed.add_argument("--layer", type=int, metavar="N", help="after how many blocks; default: after all")
    embed.add_argument("--batch", type=positive_int, default=64, help="crops at once; default 64")
    add_precision(embed, backends=True)
    add_device(embed)
    add_voxel_size_flags(embed)
    add_json(embed)
    add_volume_flags(embed)


def _add_export(verbs: Verbs) -> None:
    export = add_verb(
        verbs,
        "export",
        run_export,
        "embeddings as .npz, .parquet or .h5ad",
        "Write embeddings in another format.",
    )
    export.add_argument("embeddings", metavar="X.emb.zarr")
    export.add_argument("out", metavar="OUT", help="its ending chooses: .npz, .parquet or .h5ad (AnnData)")
    export.add_argument("--overwrite", action="store_true", help="replace OUT where it is there already")
    add_json(export)


def _add_reconstruct(verbs: Verbs) -> None:
    reconstruct = add_verb(
        verbs,
        "reconstruct",
        run_reconstruct,
        "what the decoder makes of one masked crop",
        "Mask a crop, reconstruct it and write the four-row figure: original, masked input, reconstruction, "
        "and visible and reconstructed patches merged. Prints PSNR and SSIM beside trivial predictors.",
    )
    reconstruct.add_argument(
        "model", metavar="MODEL", help="an encoder's folder with its decoder, or a shipped name"
    )
    reconstruct.add_argument("volume", metavar="VOLUME")
    reconstruct.add_argument("--out", required=True, metavar="FIG.png", help="figure to write")
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
    add_device(reconstruct)
    add_voxel_size_flags(reconstruct)
    add_json(reconstruct)
    add_volume_flags(reconstruct)


def run_embed(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import open_volume, print_result, report_bad_chunks
    from canvas_fm.data.points.points import Points
    from canvas_fm.inference.embed.embed import embed_to_store
    from canvas_fm.inference.embed.grid_points import grid_points
    from canvas_fm.models.checkpoint import load

    volume = open_volume(args.volume, args)
    points = None if args.points is None else Points.read(args.points)
    encoder = load(args.model, kind="encoder")
    if points is None:
        points = grid_points(
            volume,
            encoder.config,
            tuple(args.grid),
            resample=args.resample,
            ignore_voxel_size=args.ignore_voxel_size,
        )
    embeddings = embed_to_store(
        encoder,
        volume,
        points,
        args.out,
        pool=args.pool,
        layer=args.layer,
        batch=args.batch,
        device=args.device,
        precision=args.precision,
        backend=args.backend,
        resample=args.resample,
        ignore_voxel_size=args.ignore_voxel_size,
    )
    skipped = report_bad_chunks([volume])
    rows, *one = embeddings.whole_shape
    result = {
        "embeddings": args.out,
        "rows": rows,
        "dim": one[0] if len(one) == 1 else one,
        "pool": embeddings.pool,
        "encoder": embeddings.encoder_sha256,
    }
    print_result(result, args.json, bad_chunks=skipped)


def run_export(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import print_result
    from canvas_fm.inference.embed.embedding_store import Embeddings
    from canvas_fm.inference.embed.export import export

    embeddings = Embeddings.open(args.embeddings)
    export(embeddings, args.out, overwrite=args.overwrite)
    rows, *one = embeddings.whole_shape
    dim = one[0] if len(one) == 1 else one
    print_result({"written": args.out, "rows": rows, "dim": dim}, args.json)


def run_reconstruct(args: argparse.Namespace) -> None:
    from canvas_fm.cli.options import open_volume, print_result, report_bad_chunks
    from canvas_fm.models.checkpoint import load
    from canvas_fm.viewing.reconstruction import reconstruct

    volume = open_volume(args.volume, args)
    scores = reconstruct(
        load(args.model, kind="encoder"),
        volume,
        args.out,
        at_zyx=args.at,
        mask_ratio=args.mask_ratio,
        seed=args.seed,
        device=args.device,
        resample=args.resample,
        ignore_voxel_size=args.ignore_voxel_size,
    )
    report_bad_chunks([volume])
    print_result(scores, args.json)
