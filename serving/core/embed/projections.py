"""2D projections of served indexes, computed once in the background."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from canvas_fm.errors import CanvasError, DamagedStore
from serving.protocol.errors import Refusal, refused
from serving.protocol.schemas import MapColumn, MapInfo

if TYPE_CHECKING:
    from canvas_fm.inference.search.index.index import Index
    from canvas_fm.inference.search.projection import EmbeddingMap

logger = logging.getLogger(__name__)

_WAIT_S = 30.0  # proxies give up after a minute; the work goes on, and who asks again finds it


@dataclass(frozen=True)
class IndexProjection:
    """A 2D projection of an index, and the columns of its cells with the words of those that are text."""

    map: EmbeddingMap
    columns: dict[str, MapColumn]


class Projections:
    """Projections by index and method; at most `most` random cells each."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._tasks: dict[tuple[str, str], asyncio.Task[IndexProjection]] = {}
        self._turn = asyncio.Lock()  # one at a time: each takes a core, and memory for its cells

    async def get(self, name: str, index: Index, method: str) -> IndexProjection:
        """The projection; Refusal (503, retry) while computing, (422) for an unknown method."""
        key = name, method
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._make(index, method), name=f"map of {name}")
        task = self._tasks[key]
        await asyncio.wait({task}, timeout=_WAIT_S)
        if not task.done():
            raise Refusal(503, f"the map of {name!r} is still being computed; ask again", retry_after_s=5)
        try:
            return task.result()
        except DamagedStore as problem:
            raise _unreadable(name) from problem
        except CanvasError as problem:
            self._tasks.pop(key, None)
            raise refused(problem) from problem

    async def column(self, name: str, index: Index, method: str, column: str) -> np.ndarray:
        """A column of the map's cells: numbers, or int32 codes of the words that `about` lists."""
        projection = await self.get(name, index, method)
        try:
            return await asyncio.to_thread(_values, index, projection, column)
        except DamagedStore as problem:
            raise _unreadable(name) from problem
        except CanvasError as problem:
            raise refused(problem, 404) from problem

    async def about(self, name: str, index: Index, method: str) -> MapInfo:
        """Number of cells and columns of a projection."""
        from canvas_fm.inference.search.projection import methods

        projection = await self.get(name, index, method)
        return MapInfo(
            index=name,
            encoder=index.encoder_sha256,
            cells=len(index),
            shown=len(projection.map.rows),
            method=method,
            methods=list(methods()),
            share=projection.map.share,
            columns=projection.columns,
        )

    def stop(self) -> None:
        """Abandon pending projections."""
        for task in self._tasks.values():
            task.cancel()

    async def _make(self, index: Index, method: str) -> IndexProjection:
        async with self._turn:
            return await asyncio.to_thread(_project, index, method, self.most)


def _project(index: Index, method: str, most: int) -> IndexProjection:
    from canvas_fm.inference.search.projection import column, column_kinds, embedding_map

    projection = embedding_map(index, method=method, most=most)
    columns = {
        name: MapColumn(
            kind=kind, words=column(index, name, projection.rows).words if kind == "text" else None
        )
        for name, kind in column_kinds(index).items()
    }
    return IndexProjection(projection, columns)


def _values(index: Index, projection: IndexProjection, name: str) -> np.ndarray:
    """Values as float32, float64 or int32, for the web page."""
    from canvas_fm.inference.search.projection import column

    values = column(index, name, projection.map.rows).values
    if values.dtype.kind == "f":
        return values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
    fits = not len(values) or (values.min() >= -(2**31) and values.max() < 2**31)
    return values.astype(np.int32 if fits else np.float64)


def _unreadable(name: str) -> Refusal:
    logger.exception("the index %r cannot be read", name)
    return Refusal(500, f"the index {name!r} cannot be read; the server's log says why")
