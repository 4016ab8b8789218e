"""Embeddings of crops that were sent before, found by their content: bounded, and forgotten oldest first."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

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
        self._most, self._told = most_bytes, told
        self._held: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

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
        with self._lock:
            found = [self._held.get(name) for name in names]
            for name, vector in zip(names, found, strict=True):
                if vector is not None:
                    self._held.move_to_end(name)
            held = self._bytes
        hits = sum(vector is not None for vector in found)
        self._told(hits, len(names) - hits, held)
        return found

    def keep(self, names: Sequence[bytes], vectors: np.ndarray) -> None:
        """Hold the vectors (n, …) under their names; the longest unused ones make room."""
        with self._lock:
            for name, vector in zip(names, vectors, strict=True):
                if name in self._held:
                    continue
                mine = vector.copy()  # a row of a batch would hold the whole batch
                mine.flags.writeable = False
                self._held[name] = mine
                self._bytes += mine.nbytes + _OVERHEAD
            while self._bytes > self._most and self._held:
                _, gone = self._held.popitem(last=False)
                self._bytes -= gone.nbytes + _OVERHEAD
            held = self._bytes
        self._told(0, 0, held)
