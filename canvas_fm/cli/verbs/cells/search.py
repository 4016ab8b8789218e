"""Verbs `index` and `search`."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from canvas_fm.cli.parser import Parser, Verbs, add_switch, add_verb, positive_int

if TYPE_CHECKING:
    from canvas_fm.inference.search.hits import Hits
    from canvas_fm.inference.search.index.index import Index

logger = logging.getLogger(__name__)
_SHOWN = ("likeness", "id", "brain", "marker", "z", "y", "x", "score")


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "index",
        run_index,
        "embeddings as an index to search",
        "Index embeddings of one encoder, or add them to an index that is there. Up to 200 k cells are "
        "searched exactly, up to 20 M by inverted lists of 8-bit codes, beyond by 1-bit codes; the stored "
        "vectors decide.",
        fill=_fill_index,
    )
    add_verb(
        verbs,
        "search",
        run_search,
        "the nearest cells of an index",
        "Find the nearest cells of vectors, of cells by id, or those like some cells and unlike others. Each "
        "query says how new it is: 0.5 like an ordinary cell of the index, 1 farther out than all of them.",
        fill=_fill_search,
        check=_search_faults,
    )


def _fill_index(index: Parser) -> None:
    index.add_argument("embeddings", nargs="+", metavar="X.emb.zarr")
    index.add_argument("--out", required=True, metavar="X.index", help="index to write, or to add to")
    index.add_argument(
        "--metric", choices=["cosine", "l2"], default="cosine", help="how near is measured; default cosine"
    )


def _fill_search(search: Parser) -> None:
    search.add_argument("index", metavar="X.index")
    queries = search.add_mutually_exclusive_group(required=True)
    queries.add_argument(
        "--vector",
        metavar="FILE",
        help="vectors: .npy, or X.emb.zarr or its .npz, which say by themselves which encoder made them",
    )
    queries.add_argument(
        "--ids", nargs="+", metavar="ID", help="cells of the index, each with its neighbours; BRAIN:ID too"
    )
    queries.add_argument(
        "--like", nargs="+", metavar="ID", help="examples: one list of cells like all of them"
    )
    search.add_argument("--unlike", nargs="+", metavar="ID", help="counter-examples, with --like")
    search.add_argument("-k", type=positive_int, default=10, help="cells for each query; default 10")
    search.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="CONDITION",
        help="marker=NeuN, region=CTX,HPF, brain!=b7 or 'score>=0.5': any column; all have to hold",
    )
    search.add_argument(
        "--encoder-sha256",
        metavar="SHA256",
        help="whose vectors a bare .npy holds, compared with the index's",
    )
    search.add_output("--out", metavar="FILE", help="write the hits as .csv or .parquet, all columns")
    add_switch(search, "--verify", "compare every byte of the index with its checksums first")


def run_index(args: argparse.Namespace) -> dict:
    from canvas_fm.inference.search.index.index import Index

    index = Index.build(args.embeddings, args.out, metric=args.metric)
    brains = [str(part.constants.get("brain", part.folder.name)) for part in index.parts]
    for name in sorted({name for name in brains if brains.count(name) > 1}):
        logger.warning(
            "%d stores are of a brain called %s, and search takes them for one: give the points of each a "
            "column `brain`, and embed again", brains.count(name), name,
        )  # fmt: skip
    return {
        "index": args.out,
        "rows": len(index),
        "dim": index.dim,
        "metric": index.metric,
        "structure": index.structure,
        "recall@10": index.recall["value"],
        "brains": len(set(brains)),
        "encoder": index.encoder_sha256,
        "pool": index.pool,
    }


def _search_faults(args: argparse.Namespace) -> list[str]:
    if args.unlike and not args.like:
        return ["--unlike names counter-examples of --like; give at least one example there"]
    return []


def run_search(args: argparse.Namespace) -> None:
    from canvas_fm.inference.search.index.index import Index
    from canvas_fm.inference.search.query import query

    index = Index.open(args.index)
    if args.verify:
        index.verify()
    if args.like:
        result = query(index, like=args.like, unlike=args.unlike or [], k=args.k, where=args.where)
    elif args.ids:
        result = query(index, ids=args.ids, k=args.k, where=args.where)
    else:
        vectors, encoder, pooling = read_vectors(args.vector)
        if pooling is not None:
            index.check_pool(*pooling)
        encoder = args.encoder_sha256 or encoder
        result = query(index, vectors=vectors, k=args.k, where=args.where, encoder=encoder)
    _show(args, index, *result)


def read_vectors(path: str) -> tuple[Any, str | None, tuple[str, int | None] | None]:
    """Vectors of a .npy, .npz or X.emb.zarr; encoder sha256 and (pool, layer) if recorded."""
    import json
    from pathlib import Path

    import numpy as np

    from canvas_fm.errors import CanvasError
    from canvas_fm.files.numpy_errors import UNREADABLE_NUMPY
    from canvas_fm.inference.embed.store.embedding_store import Embeddings

    if Path(path).is_dir():
        embeddings = Embeddings.open(path)
        pooling = (embeddings.pool, embeddings.attributes.get("layer"))
        return embeddings.vectors, embeddings.encoder_sha256, pooling
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            about = json.loads(str(loaded["about"]))
            return loaded["embeddings"], about["encoder_sha256"], (about["pool"], about.get("layer"))
    except FileNotFoundError as problem:
        raise CanvasError(f"{path} does not exist; give a .npy, a .npz or an X.emb.zarr") from problem
    except UNREADABLE_NUMPY as problem:
        raise CanvasError(
            f"{path} holds no vectors: give a .npy of (n, d) numbers, an X.emb.zarr, or the .npz that "
            "`canvas-fm export` writes"
        ) from problem
    return loaded, None, None


def _show(args: argparse.Namespace, index: Index, hits: Hits, novelty: list[float] | None) -> None:
    import json

    table = hits.table(index.describe)
    if args.out:
        from canvas_fm.cli.output import print_result

        hits.write(index.describe, args.out)
        print_result(
            {"written": args.out, "hits": len(table), **({"novelty": novelty} if novelty else {})}, args.json
        )
    elif args.json:
        print(json.dumps({"novelty": novelty, "hits": table}, indent=2))
    else:
        for query in range(len(hits.rows)):
            if novelty is not None:
                print(f"query {query}: novelty {novelty[query]:g}")
            _print_rows([row for row in table if row["query"] == query])


def _print_rows(rows: list[dict[str, Any]]) -> None:
    names = ["rank", "distance", *(name for name in _SHOWN if any(row.get(name) is not None for row in rows))]
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
