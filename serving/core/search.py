"""Search of the served indexes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from canvas_fm.errors import CanvasError, DamagedStore, ModelMismatch
from serving.core.core import Core
from serving.core.volumes.thumbnails import MOST_THUMBNAILS, add_origins
from serving.protocol.errors import Refusal, refused
from serving.protocol.request_options import SearchRequest
from serving.protocol.request_values import ParsedRows
from serving.protocol.schemas import SearchReply

if TYPE_CHECKING:
    from canvas_fm.inference.search.index.index import Index

T = TypeVar("T")

_MOST_QUERIES = 256
_MOST_CONDITIONS = 16


def find_index(core: Core, name: str | None) -> tuple[str, Index]:
    """An index by name, the only one for None; Refusal (404) if unknown."""
    names = ", ".join(core.indexes) or "none"
    if name is None and len(core.indexes) == 1:
        name = next(iter(core.indexes))
    if name is None or name not in core.indexes:
        reason = "no index was named" if name is None else f"no index is served as {name[:100]!r}"
        raise Refusal(404, f"{reason}; served: {names}")
    return name, core.indexes[name]


def check_search(core: Core, request: SearchRequest, queries: int) -> None:
    """Refuse (413) too large a search."""
    if request.k > core.limits.max_hits:
        raise Refusal(413, f"k is {request.k}; {core.limits.max_hits} hits are the most")
    if queries > _MOST_QUERIES:
        raise Refusal(413, f"{queries} queries in one request; {_MOST_QUERIES} are the most")
    if len(request.where) > _MOST_CONDITIONS or len(request.unlike) > _MOST_QUERIES:
        raise Refusal(413, f"{_MOST_CONDITIONS} conditions and {_MOST_QUERIES} examples are the most")
    hits = request.k * (queries if request.like is None else 1)
    if request.thumbnails and hits > MOST_THUMBNAILS:
        raise Refusal(413, f"{hits} thumbnails in one reply; {MOST_THUMBNAILS} are the most")


async def search(core: Core, request: SearchRequest, vectors: np.ndarray | None) -> SearchReply:
    """Hits of one request; `vectors` are those of received crops."""
    name, index = find_index(core, request.index)
    queries = (request.vectors, request.ids, request.like)
    check_search(core, request, max(0 if each is None else len(each) for each in queries))
    return await read_index(core, name, lambda: _search(core, name, index, request, vectors))


async def read_index(core: Core, name: str, work: Callable[[], T]) -> T:
    """Run work on an index in the thread pool; its errors become Refusals."""
    try:
        return await core.search_pool.run(work)
    except DamagedStore as problem:
        raise Refusal(500, f"the index {name!r} cannot be read; the server's log says why") from problem
    except ModelMismatch as problem:
        raise refused(problem, 409) from problem


def _search(
    core: Core, name: str, index: Index, request: SearchRequest, vectors: np.ndarray | None
) -> SearchReply:
    from canvas_fm.inference.search.query import query

    if vectors is None and request.vectors is not None:
        vectors = _array(request.vectors)
    hits, novelty = query(
        index,
        vectors=vectors,
        ids=request.ids,
        like=request.like,
        unlike=request.unlike,
        k=request.k,
        where=request.where,
        encoder=request.encoder,
    )
    table = hits.table(index.describe)
    for at, line in enumerate(table):  # one after the other: freeing all of them at once takes a while too
        table[at] = {key: plain(value) for key, value in line.items()}
    if request.thumbnails:
        rows = np.array([line["row"] for line in table], np.int64)
        add_origins(core, index, rows, table, thumbnails=True)
    # Not validated: a quarter of a million hits would hold all other requests up.
    return SearchReply.model_construct(index=name, encoder=index.encoder_sha256, hits=table, novelty=novelty)


def _array(vectors: ParsedRows) -> np.ndarray:
    try:
        return np.array(vectors, dtype=np.float32)
    except (ValueError, OverflowError) as problem:
        raise CanvasError("the vectors are ragged lists; all have to have the same length") from problem


def plain(value: object) -> object:
    """JSON value: None for non-finite numbers."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
