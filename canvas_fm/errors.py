"""Exceptions with user-facing messages: each says what was given, what was expected and what to do next."""

from __future__ import annotations

from operator import index
from typing import SupportsIndex

_SINGULAR = {"are": "is", "have": "has", "were": "was"}


def counted(count: SupportsIndex, noun: str, verb: str = "") -> str:
    """A number with its noun and verb, of `fault` and `are`: `1 fault is`, `1,200 faults are`."""
    number = index(count)
    if number == 1:
        verb = _SINGULAR.get(verb, f"{verb}s") if verb else ""
    elif noun.endswith(("s", "x", "sh", "ch")):
        noun += "es"
    else:
        noun = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{number:,} {noun} {verb}".rstrip()


class CanvasError(Exception):
    """An error in the caller's arguments or files: one-line message, exit code 1, HTTP 4xx."""


class BadInput(CanvasError, ValueError):
    """Training data that a head cannot learn from; also a ValueError, as scikit-learn's tools expect."""


class DamagedStore(CanvasError):
    """A file on disk fails its integrity check; the message names the array, the chunk and the cause."""

    def __init__(self, store: object, array: str, chunk: str, cause: str, hint: str = "") -> None:
        self.store, self.array, self.chunk, self.cause = str(store), array, chunk, cause
        tail = f"; {hint}" if hint else ""
        super().__init__(f"{store}: array {array!r}, chunk {chunk!r}: {cause}{tail}")


class Unreachable(CanvasError):
    """A remote store that does not answer, or answers wrongly; `passing` where a retry may succeed."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class ModelMismatch(CanvasError):
    """Two artefacts that are incompatible: different encoder, voxel size or model class."""


class MissingExtra(CanvasError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{purpose} needs {package}: pip install 'canvas-fm[{extra}]'")


class StorageFull(CanvasError):
    """The disk is full; existing files are untouched. `then` is what to do once there is room."""

    def __init__(self, fact: str, *, then: str = "run the same command again") -> None:
        self.fact = fact
        super().__init__(f"{fact}: free some space and {then}")
