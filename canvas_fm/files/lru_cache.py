"""A byte-bounded, thread-safe LRU cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """LRU cache of at most `limit` bytes; `size_of` gives the bytes of a value. Thread-safe.

    What is larger than the limit is not kept, and a key that is held keeps its value.
    """

    def __init__(self, limit: float, size_of: Callable[[V], int]) -> None:
        self.limit, self.held, self._size_of = limit, 0, size_of
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The cached value, marked as most recently used; None on a miss."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Store a value and evict the least recently used ones beyond the limit."""
        if self._size_of(value) > self.limit:
            return
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self.held += self._size_of(value)
            while self.held > self.limit:
                self.held -= self._size_of(self._values.popitem(last=False)[1])

    def forget(self, key: K) -> None:
        """Remove a value, if present."""
        with self._lock:
            if key in self._values:
                self.held -= self._size_of(self._values.pop(key))
