"""Embeddings of crops that were sent before, found by their content: bounded, and forgotten oldest first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from canvas_fm.data.lru_cache import LruCache

_OVERHEAD = 256  # bytes of Python around one vector


class VectorCache:
    """At most `most_bytes` of vectors by name; safe to use from several threads.

    A name is the sha256 over a crop's bytes and over everything else that decides its vector.
    """

    def __init__(
        self,
        most_bytes: float,
        told: Callable[[int, int, int], None] = lambda hits, misses, held_bytes: None,
    ) -> None:
        self._told = told
        self._held: LruCache[bytes, np.ndarray] = LruCache(most_bytes, lambda x: x.nbytes + _OVERHEAD)

    def names(self, about: Sequence[object], crops: np.ndarray) -> list[bytes]:
        """The name of each crop (n, …); `about` is the model, its pooling and layer, and the window."""
        shared = hashlib.sha256(repr((*about, crops.dtype.str, crops.shape[1:])).encode())
        found = []
        for crop in crops:
            one = shared.copy()
            one.update(np.ascontiguousarray(crop).data)
            found.append(one.digest())
        return found

    def find(self, names: Sequence[bytes]) -> list[np.ndarray | None]:
        """The vector of each name, None where it is not held."""
        found = [self._held.get(name) for name in names]
        hits = sum(vector is not None for vector in found)
        self._told(hits, len(names) - hits, self._held.held)
        return found

    def keep(self, names: Sequence[bytes], vectors: np.ndarray) -> None:
        """Hold the vectors (n, …) under their names; the longest unused ones make room."""
        for name, vector in zip(names, vectors, strict=True):
            mine = vector.copy()  # a row of a batch would hold the whole batch
            mine.flags.writeable = False
            self._held.put(name, mine)
        self._told(0, 0, self._held.held)
