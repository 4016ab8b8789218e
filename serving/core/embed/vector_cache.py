"""LRU cache of crop embeddings, addressed by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from canvas_fm.files.lru_cache import LruCache

_OVERHEAD = 256  # bytes of Python around one vector


class VectorCache:
    """At most `most_bytes` of vectors by digest; thread-safe.

    A name is the sha256 over a crop's bytes and over everything else that decides its vector.
    """

    def __init__(
        self,
        most_bytes: float,
        on_change: Callable[[int, int, int], None] = lambda hits, misses, held_bytes: None,
    ) -> None:
        self._on_change = on_change
        self._held: LruCache[bytes, np.ndarray] = LruCache(most_bytes, lambda x: x.nbytes + _OVERHEAD)

    def names(self, about: Sequence[object], crops: np.ndarray) -> list[bytes]:
        """Digest of each crop (n, …); `about` is the model, pooling, layer and window."""
        shared = hashlib.sha256(repr((*about, crops.dtype.str, crops.shape[1:])).encode())
        digests = []
        for crop in crops:
            digest = shared.copy()
            digest.update(np.ascontiguousarray(crop).data)
            digests.append(digest.digest())
        return digests

    def find(self, names: Sequence[bytes]) -> list[np.ndarray | None]:
        """Cached vector of each digest, None on a miss."""
        vectors = [self._held.get(name) for name in names]
        hits = sum(vector is not None for vector in vectors)
        self._on_change(hits, len(names) - hits, self._held.held)
        return vectors

    def keep(self, names: Sequence[bytes], vectors: np.ndarray) -> None:
        """Store vectors (n, …) under their digests, evicting the least recently used."""
        for name, vector in zip(names, vectors, strict=True):
            copy = vector.copy()  # a row of a batch would hold the whole batch
            copy.flags.writeable = False
            self._held.put(name, copy)
        self._on_change(0, 0, self._held.held)
