"""Read-only remote store over https; each file is immutable once read."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar
from urllib.parse import quote

from canvas_fm.data.store.keys import Stamp, split_key
from canvas_fm.data.store.remote.address import Address
from canvas_fm.data.store.remote.pinned_https import Answer, Pinned, Timeouts, TooLong
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.files.lru_cache import LruCache

T = TypeVar("T")
R = TypeVar("R")

MOST_PIECE = 128 * 2**20  # bytes of one piece, which has to lie in memory
_MOST_METADATA = 64 * 2**20  # bytes of a metadata file or a manifest
_HELD = MOST_PIECE  # bytes of files that are kept for the next read
_AT_ONCE = 8
_CHANGED = "is another file than before: the store was changed while it was open; open it again"


class Remote:
    """Files below an address, fetched only from `addresses` (see `Pinned`), thread-safe.

    A file that is missing on the host is one that is not there, as on a disk; any other answer than the file
    raises Unreachable, a file that is not the one seen before or longer than it can be DamagedStore. Pickled,
    it goes to the same addresses.
    """

    def __init__(self, address: str, addresses: Sequence[str], timeouts: Timeouts | None = None) -> None:
        self.address = Address.parse(address)
        self.root = str(self.address)
        self._addresses, self._timeouts = tuple(addresses), timeouts or Timeouts()
        self._pinned = Pinned(self.address.host, self.address.port, self._addresses, self._timeouts)
        self._most, self._check_whole = MOST_PIECE, True
        self._most_part: int | None = None
        self._seen: dict[str, tuple[Stamp, str]] = {}
        self._held: LruCache[str, bytes] = LruCache(_HELD, len)
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return self.root

    def __reduce__(self) -> tuple[type[Remote], tuple[str, tuple[str, ...], Timeouts]]:
        return Remote, (self.root, self._addresses, self._timeouts)

    def expect(self, max_bytes: int, max_part_bytes: int | None, *, check_whole: bool) -> None:
        """Set size limits: `max_bytes` of a chunk file, `max_part_bytes` of a chunk inside a shard.

        Of shards only the chunks that are asked for are fetched, but with `check_whole` each shard as a whole
        when it is first looked at. CanvasError for pieces that are larger than what is read at once.
        """
        whole_files = max_part_bytes is None or check_whole
        piece = max_bytes if max_part_bytes is None or check_whole else max_part_bytes
        if piece > MOST_PIECE:
            raise CanvasError(
                f"{self} has {'chunk files' if whole_files else 'chunks'} of up to {piece / 2**20:,.0f} MB; "
                f"remote stores are read in pieces of at most "
                f"{MOST_PIECE // 2**20} MB: write it with smaller ones"
            )
        self._most, self._most_part, self._check_whole = max_bytes, max_part_bytes, check_whole

    def stamp(self, key: str) -> Stamp | None:
        """Stamp of a file, None if absent; fetches the file or its head."""
        entry = self._find(key)
        if entry is None:
            answer = self._ask(key, head=True) if self._only_head(key) else self._fetch(key)
            entry = None if answer is None else self._note(key, answer)
        return None if entry is None else entry[0]

    def read(self, key: str, first: int = -1) -> bytes | None:
        """Bytes of a file, or only its first `first` ones; None if absent."""
        content = self._held.get(key)
        if content is None:
            answer = self._fetch(key)
            if answer is None:
                return None
            self._note(key, answer)
            content = answer.content
        return content if first < 0 else content[:first]

    def part(self, key: str, start: int | None, stop: int | None) -> bytes | None:
        """Bytes `start` to `stop` of a file, as a slice: (-n, None) is the last n."""
        if self.stamp(key) is None:
            return None
        stamp, version = self._seen[key]
        content = self._held.get(key)
        if content is None and (self._most_part is None or (self._check_whole and not version)):
            content = self.read(key)  # else nothing would tell that a part is of the file that was checked
        if content is not None:
            return content[start:stop]
        low, high, _ = slice(start, stop).indices(stamp.size)
        if (stop or 0) > stamp.size or high <= low:
            raise self._damage(key, f"has {stamp.size:,} bytes; its index names some beyond")
        if high - low > (self._most_part or 0):
            limit = f"at most {self._most_part:,} of a chunk"
            raise self._damage(key, f"its index claims {high - low:,} bytes where {limit} can be")
        answer = self._ask(key, span=(low, high))
        if answer is None or (answer.size, answer.version) != (stamp.size, version):
            raise self._damage(key, _CHANGED)
        return answer.content

    def listing(self, below: str = "") -> Iterator[str]:
        """Not available over plain https: raises CanvasError."""
        raise CanvasError(f"{self} is remote; its files cannot be listed")

    def crc(self, key: str) -> int:
        """The crc32 of a file."""
        return zlib.crc32(self.read(key) or b"")

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply `work` to items in parallel, results in order; hides network latency."""
        return self._pool.map(work, items)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="remote")

    def _only_head(self, key: str) -> bool:
        return _is_chunk(key) and self._most_part is not None and not self._check_whole

    def _find(self, key: str) -> tuple[Stamp, str] | None:
        with self._lock:
            return self._seen.get(key)

    def _fetch(self, key: str) -> Answer | None:
        """Fetch a whole file and cache it for the next read."""
        answer = self._ask(key)
        if answer is not None:
            self._held.put(key, answer.content)
        return answer

    def _ask(self, key: str, *, span: tuple[int, int] | None = None, head: bool = False) -> Answer | None:
        path = f"{self.address.path}/{quote(key, safe='/')}"
        max_bytes = self._most if _is_chunk(key) else _MOST_METADATA
        try:
            max_bytes = max_bytes if span is None else span[1] - span[0]
            return self._pinned.get(path, max_bytes=max_bytes, span=span, head=head)
        except TooLong as problem:
            raise self._damage(key, f"is longer than the {max_bytes:,} bytes that it can have") from problem

    def _note(self, key: str, answer: Answer) -> tuple[Stamp, str]:
        """Record a file's version; DamagedStore if it changed since."""
        told_by = answer.version.encode() if self._only_head(key) else answer.content
        entry = Stamp(answer.size, 0, (zlib.crc32(told_by),)), answer.version
        with self._lock:
            before = self._seen.setdefault(key, entry)
        if before[0] != entry[0]:
            self._held.forget(key)
            raise self._damage(key, _CHANGED)
        return before

    def _damage(self, key: str, cause: str) -> DamagedStore:
        return DamagedStore(self, *split_key(key), cause)


def _is_chunk(key: str) -> bool:
    """Whether a key is a chunk: `0/c/1/2/3`, `0/c.1.2.3`, `0/1.2.3` or `0/1/2/3`; not metadata."""
    last = key.rsplit("/", 1)[-1]
    return last[:1].isdigit() or last.startswith("c.")
