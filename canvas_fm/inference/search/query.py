"""One search of an index by vectors, cells or examples, with the novelty of each query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from canvas_fm.errors import CanvasError
from canvas_fm.inference.search.hits import Hits
from canvas_fm.inference.search.index.index import Index


class QueryResult(NamedTuple):
    """Hits, and novelty of each query (0 to 1); None for examples and very small indexes."""

    hits: Hits
    novelty: list[float] | None


def query(
    index: Index,
    *,
    vectors: Any = None,
    ids: Sequence[str | int] | None = None,
    like: Sequence[str | int] | None = None,
    unlike: Sequence[str | int] = (),
    k: int = 10,
    where: Sequence[str] = (),
    encoder: str | None = None,
) -> QueryResult:
    """The k nearest cells of `vectors` (q, d), of the cells `ids`, or of the examples `like`: one of them.

    A cell is neither its own hit nor its own neighbour where its novelty is computed. `encoder` is the sha256
    of the encoder that made the vectors. Raises CanvasError and ModelMismatch as the methods of `Index` do.
    """
    if sum(each is not None for each in (vectors, ids, like)) != 1:
        raise CanvasError("give one of vectors, ids and like")
    if unlike and not like:
        raise CanvasError("unlike names counter-examples of like; give at least one example there")
    if like is not None:
        return QueryResult(index.like(like, unlike, k, where=where), None)
    rows = None
    if ids is not None:
        if not len(ids):
            raise CanvasError("ids is empty; name at least one cell")
        rows = index.rows_of(ids)
        vectors = index.vectors(rows)
    hits = index.search(vectors, k, where=where, encoder=encoder, exclude=rows)
    if index.about["novelty"] is None:
        return QueryResult(hits, None)
    return QueryResult(hits, [round(float(value), 4) for value in index.novelty(vectors, exclude=rows)])
