"""Searching the indexes that were named at the start."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from canvas_fm.errors import CanvasError, DamagedStore, ModelMismatch
from serving.core.core import Core
from serving.core.thumbnails import MOST_THUMBNAILS, add_origins
from serving.protocol.errors import Refusal, refused
from serving.protocol.schemas import SearchReply, SearchRequest

if TYPE_CHECKING:
    from canvas_fm.inference.search.hits import Hits
    from canvas_fm.inference.search.index import Index

T = TypeVar("T")

_MOST_QUERIES = 256
_MOST_CONDITIONS = 16


def find_index(core: Core, name: str | None) -> tuple[str, Index]:
    """An index by name, the only one for None; Refusal (404) where that is none."""
    names = ", ".join(core.indexes) or "none"
    if name is None and len(core.indexes) == 1:
        name = next(iter(core.indexes))
    if name is None or name not in core.indexes:
        said = "no index was named" if name is None else f"no index is served as {name[:100]!r}"
        raise Refusal(404, f"{said}; served: {names}")
    return name, core.indexes[name]


def check_search(core: Core, asked: SearchRequest, queries: int) -> None:
    """Refuse (413) what is too much for one request."""
    if asked.k > core.limits.max_hits:
        raise Refusal(413, f"k is {asked.k}; {core.limits.max_hits} hits are the most")
    if queries > _MOST_QUERIES:
        raise Refusal(413, f"{queries} queries in one request; {_MOST_QUERIES} are the most")
    if len(asked.where) > _MOST_CONDITIONS or len(asked.unlike) > _MOST_QUERIES:
        raise Refusal(413, f"{_MOST_CONDITIONS} conditions and {_MOST_QUERIES} examples are the most")
    hits = asked.k * (queries if asked.like is None else 1)
    if asked.thumbnails and hits > MOST_THUMBNAILS:
        raise Refusal(413, f"{hits} thumbnails in one reply; {MOST_THUMBNAILS} are the most")


async def search(core: Core, asked: SearchRequest, vectors: np.ndarray | None) -> SearchReply:
    """The hits of one request; `vectors` are those of crops that were sent."""
    name, index = find_index(core, asked.index)
    kinds = [asked.vectors, asked.ids, asked.like]
    if vectors is None and sum(kind is not None for kind in kinds) != 1:
        raise Refusal(422, "give one of vectors, ids and like")
    if asked.unlike and asked.like is None:
        raise Refusal(422, "unlike names counter-examples of like; give at least one example there")
    check_search(core, asked, max(len(kind or ()) for kind in kinds))
    return await read_index(core, name, lambda: _search(core, name, index, asked, vectors))


async def read_index(core: Core, name: str, work: Callable[[], T]) -> T:
    """What work on an index gives, beside that on others; its faults and mistakes as refusals."""
    try:
        return await core.search_pool.run(work, deadline_s=core.limits.deadline_s)
    except DamagedStore as problem:
        raise Refusal(500, f"the index {name!r} cannot be read; the server's log says why") from problem
    except ModelMismatch as problem:
        raise refused(problem, 409) from problem
    except CanvasError as problem:
        raise refused(problem) from problem


def _search(
    core: Core, name: str, index: Index, asked: SearchRequest, vectors: np.ndarray | None
) -> SearchReply:
    novelty: np.ndarray | None = None
    knows = index.about["novelty"] is not None
    hits: Hits
    if asked.like is not None:
        hits = index.like(asked.like, asked.unlike, asked.k, where=asked.where)
    elif asked.ids is not None:
        if not asked.ids:
            raise CanvasError("ids is empty; name at least one cell")
        rows = index.rows_of(asked.ids)
        hits = index.search_ids(asked.ids, asked.k, where=asked.where)
        novelty = index.novelty(index.vectors(rows), exclude=rows) if knows else None
    else:
        ready = _array(asked.vectors) if vectors is None else vectors
        hits = index.search(ready, asked.k, where=asked.where, encoder=asked.encoder)
        novelty = index.novelty(ready) if knows else None
    table = [{key: plain(value) for key, value in line.items()} for line in hits.table(index.describe)]
    if asked.thumbnails:
        rows = np.array([line["row"] for line in table], np.int64)
        add_origins(core, index, rows, table, thumbnails=True)
    said = None if novelty is None else [round(float(value), 4) for value in novelty]
    return SearchReply(index=name, encoder=index.encoder_sha256, hits=table, novelty=said)


def _array(vectors: list[list[float]] | None) -> np.ndarray:
    try:
        return np.array(vectors, dtype=np.float32)
    except (ValueError, OverflowError) as problem:
        raise CanvasError("the vectors are ragged lists; all have to have the same length") from problem


def plain(value: object) -> object:
    """The value as JSON has it: None for what is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
