"""Nearest rows of an index: inverted lists or a scan propose, the stored vectors decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from canvas_fm.inference.search.hits import without
from canvas_fm.inference.search.index_store import gather, parts_of
from canvas_fm.inference.search.inverted_lists import FEW, Lists, propose_exactly

_DECIDE_NUMBERS = 2**24  # in memory at a time while distances are computed


class NearestRows:
    """The rows that a mark names, searched by vectors as they are stored (`index_store.prepared`)."""

    def __init__(self, path: Path, mark: Mapping[str, Any]) -> None:
        self.parts, self.rows, self.dim = parts_of(path, mark), int(mark["rows"]), int(mark["dim"])
        self.metric = str(mark["metric"])
        self.lists = None if mark["lists"] is None else Lists(path, mark["lists"], self.dim)

    def search(
        self, queries: np.ndarray, k: int, mask: Bool[np.ndarray, " n"] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rows, squared distances), (q, k) each: lists or a scan propose, the stored vectors decide."""
        left = self.rows if mask is None else int(mask.sum())
        few = min(k, left)
        if self.lists is None or left <= FEW:
            return self.decide(queries, propose_exactly(self.parts, queries, min(few + 8, left), mask), k)
        wide = self.lists.about["nlist"]
        # A filter thins the lists out, and many hits reach farther than ten do.
        nprobe = int(self.lists.about["nprobe"] * self.rows / left * max(1.0, (k / 10) ** 0.5))
        wanted = min(self.lists.factor * few + 10, left)
        proposed = self.lists.propose(queries, wanted, mask, min(nprobe, wide))
        if (proposed >= 0).sum(axis=1).min() < few and nprobe < wide:
            proposed = self.lists.propose(queries, wanted, mask, wide)
        return self.decide(queries, proposed, k)

    def decide(self, queries: np.ndarray, proposed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the rows that were proposed for each query the k nearest, by the stored vectors."""
        rows = np.full((len(queries), k), -1, np.int64)
        squared = np.full((len(queries), k), np.inf, np.float32)
        few = min(k, proposed.shape[1])
        step = max(1, _DECIDE_NUMBERS // (proposed.shape[1] * self.dim))
        for first in range(0, len(queries), step):
            some = slice(first, first + step)
            mine = np.sort(proposed[some], axis=1)  # so that equal distances stand in the order of rows
            vectors = gather(self.parts, np.maximum(mine, 0).reshape(-1), self.dim)
            difference = vectors.reshape(*mine.shape, self.dim) - queries[some, None]
            found = np.einsum("qrd,qrd->qr", difference, difference)
            found[mine < 0] = np.inf
            order = np.argsort(found, axis=1, kind="stable")[:, :few]
            rows[some, :few] = np.take_along_axis(mine, order, 1)
            squared[some, :few] = np.take_along_axis(found, order, 1)
        return rows, squared

    def distance(self, squared: np.ndarray) -> np.ndarray:
        """1 − cos where the metric is cosine, else Euclidean."""
        distance = squared / 2 if self.metric == "cosine" else np.sqrt(squared)
        return distance.astype(np.float32, copy=False)

    def mean_distance(
        self, ready: Float32[np.ndarray, "q d"], neighbours: int, exclude: Sequence[int] | np.ndarray | None
    ) -> Float32[np.ndarray, " q"]:
        """Mean distance of prepared vectors to their nearest rows."""
        rows, squared = self.search(ready, neighbours + (exclude is not None), None)
        if exclude is not None:
            rows, squared = without(rows, squared, np.asarray(exclude), neighbours)
        distance = self.distance(squared)
        there = rows >= 0
        total = np.where(there, distance, np.float32(0)).sum(axis=1)
        return total / np.maximum(there.sum(axis=1), 1).astype(np.float32)
