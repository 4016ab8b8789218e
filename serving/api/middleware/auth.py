"""Authentication by bearer keys, and a token-bucket rate limit for each key."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from canvas_fm.errors import CanvasError
from serving.protocol.errors import Refusal

OPEN_PATHS = ("/livez", "/readyz", "/healthz")  # what asks whether the process runs has no key
_OPEN_FOLDERS = ("/ui/", "/static_content/")  # nor have the page's own files: it asks its reader for one
_KEY = re.compile(r"[\x21-\x7e]{16,256}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_BUCKETS = 10_000


def read_keys(path: str | Path) -> dict[str, str]:
    """sha256 of the keys of a file by name; keys themselves are not kept.

    A line is `NAME KEY`, or a KEY alone; `#` begins a comment. A key has 16 to 256 printable characters.
    Raises CanvasError for a file that others may read, a key that is too short or stands there twice, and
    for no key at all.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise CanvasError(f"the keys in {path} cannot be read: {problem}") from problem
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CanvasError(f"{path} may be read by others of this machine; chmod 600 {path}")
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, key = words if len(words) == 2 else (f"key{number}", words[-1])
        if len(words) > 2 or not _NAME.fullmatch(name) or not _KEY.fullmatch(key):
            raise CanvasError(
                f"{path}, line {number}: write NAME KEY, the key of 16 to 256 printable characters"
            )
        digest = _digest(key)
        if name in keys or digest in keys.values():
            raise CanvasError(f"{path}, line {number}: the name or the key stands there twice")
        keys[name] = digest
    if not keys:
        raise CanvasError(
            f"{path} holds no key; write one as NAME KEY, for example from `openssl rand -hex 32`"
        )
    return keys


def is_open(path: str) -> bool:
    """Whether a path needs no key and is not rate-limited."""
    return path in OPEN_PATHS or path.startswith(_OPEN_FOLDERS)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def holder_of(keys: Mapping[str, str], authorization: str) -> str:
    """Owner of the key in an `Authorization` header; Refusal (401) without a valid one.

    Digests are compared, all of them and each in constant time: how long it takes says nothing of a key.
    """
    kind, _, key = authorization.partition(" ")
    digest = _digest(key.strip())
    holder = ""
    for name, known in keys.items():
        if hmac.compare_digest(digest, known):
            holder = name
    if kind.lower() != "bearer" or not holder:
        raise Refusal(401, "a key is needed: send the header Authorization: Bearer KEY")
    return holder


class Buckets:
    """Token buckets: at most `burst` requests at once and `rate_per_s` a second for each key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, holder: str, rate_per_s: float, burst: int) -> None:
        """Count one request; Refusal (429) with the time of the next."""
        now = self._clock()
        left, then = self._held.pop(holder, (float(burst), now))
        left = min(float(burst), left + (now - then) * rate_per_s)
        allowed = left >= 1
        self._held[holder] = (left - allowed, now)
        if len(self._held) > _MOST_BUCKETS:
            self._held.popitem(last=False)
        if not allowed:
            wait = max(1, math.ceil((1 - left) / rate_per_s))
            raise Refusal(
                429,
                f"{rate_per_s:g} requests a second are the most; come back in {wait} s",
                retry_after_s=wait,
            )
