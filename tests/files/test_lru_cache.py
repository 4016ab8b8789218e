"""The cache of bytes: which values stay, and how many bytes it says it holds."""

from __future__ import annotations

from canvas_fm.files.lru_cache import LruCache


def test_the_least_recently_used_goes_and_the_bytes_are_counted():
    cache: LruCache[str, bytes] = LruCache(10, len)
    cache.put("a", b"aaaa")
    cache.put("b", b"bbbb")
    assert cache.get("a") == b"aaaa"  # now b is the least recently used
    cache.put("c", b"cccc")
    assert (cache.get("b"), cache.get("c"), cache.held) == (None, b"cccc", 8)
    cache.put("a", b"other")  # a key keeps its value
    cache.put("large", b"x" * 11)
    assert (cache.get("a"), cache.get("large"), cache.held) == (b"aaaa", None, 8)
    cache.forget("a")
    cache.forget("nothing")
    assert (cache.get("a"), cache.held) == (None, 4)


def test_a_limit_of_zero_holds_nothing():
    cache: LruCache[int, bytes] = LruCache(0, len)
    cache.put(1, b"x")
    assert (cache.get(1), cache.held) == (None, 0)
