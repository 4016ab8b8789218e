"""Nearest rows of an index: candidates by lists or scan, reranked by the stored vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from canvas_fm.inference.search.hits import without
from canvas_fm.inference.search.index.index_store import gather, parts_of
from canvas_fm.inference.search.inverted_lists import FEW, Lists, propose_exactly

_DECIDE_NUMBERS = 2**24  # in memory at a time while distances are computed


class NearestRows:
    """Search of the rows that a manifest lists, by prepared vectors (`index_store.prepared`)."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.parts, self.rows, self.dim = (
            parts_of(path, manifest),
            int(manifest["rows"]),
            int(manifest["dim"]),
        )
        self.metric = str(manifest["metric"])
        self.lists = None if manifest["lists"] is None else Lists(path, manifest["lists"], self.dim)

    def search(
        self, queries: np.ndarray, k: int, mask: Bool[np.ndarray, " n"] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rows, squared distances), (q, k) each: candidates reranked by the stored vectors."""
        n_candidates = self.rows if mask is None else int(mask.sum())
        n_results = min(k, n_candidates)
        if self.lists is None or n_candidates <= FEW:
            return self.decide(
                queries, propose_exactly(self.parts, queries, min(n_results + 8, n_candidates), mask), k
            )
        wide = self.lists.about["nlist"]
        # A filter thins the lists out, and many hits reach farther than ten do.
        nprobe = int(self.lists.about["nprobe"] * self.rows / n_candidates * max(1.0, (k / 10) ** 0.5))
        n_proposed = min(self.lists.factor * n_results + 10, n_candidates)
        proposed = self.lists.propose(queries, n_proposed, mask, min(nprobe, wide))
        if (proposed >= 0).sum(axis=1).min() < n_results and nprobe < wide:
            proposed = self.lists.propose(queries, n_proposed, mask, wide)
        return self.decide(queries, proposed, k)

    def decide(self, queries: np.ndarray, proposed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rerank the proposed rows of each query by the stored vectors; the k nearest."""
        rows = np.full((len(queries), k), -1, np.int64)
        squared = np.full((len(queries), k), np.inf, np.float32)
        n_results = min(k, proposed.shape[1])
        step = max(1, _DECIDE_NUMBERS // (proposed.shape[1] * self.dim))
        for first in range(0, len(queries), step):
            batch = slice(first, first + step)
            candidates = np.sort(
                proposed[batch], axis=1
            )  # so that equal distances stand in the order of rows
            vectors = gather(self.parts, np.maximum(candidates, 0).reshape(-1), self.dim)
            difference = vectors.reshape(*candidates.shape, self.dim) - queries[batch, None]
            squared_distances = np.einsum("qrd,qrd->qr", difference, difference)
            squared_distances[candidates < 0] = np.inf
            order = np.argsort(squared_distances, axis=1, kind="stable")[:, :n_results]
            rows[batch, :n_results] = np.take_along_axis(candidates, order, 1)
            squared[batch, :n_results] = np.take_along_axis(squared_distances, order, 1)
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
        filled = rows >= 0
        total = np.where(filled, distance, np.float32(0)).sum(axis=1)
        return total / np.maximum(filled.sum(axis=1), 1).astype(np.float32)
