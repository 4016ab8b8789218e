"""Checksums of files, and JSON that carries its own."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from canvas_fm.errors import CanvasError

Algorithm = Literal["blake3", "sha256"]
_BLOCK = 1 << 20  # bytes that are hashed while they are in the cache


@runtime_checkable
class Digest(Protocol):
    """A checksum of bytes that are given part by part."""

    def update(self, part: Any, /) -> Any: ...

    def hexdigest(self) -> str: ...


def sha256(path: Path) -> str:
    """The sha256 of a file's contents, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fastest_algorithm() -> Algorithm:
    """BLAKE3, at a third of sha256's time; sha256 where its package is not installed."""
    return "sha256" if _blake3() is None else "blake3"


def file_checksum(path: Path, algorithm: Algorithm) -> str:
    """The checksum of a file's contents, as hex; CanvasError for BLAKE3 without its package."""
    if algorithm == "sha256":
        return sha256(path)
    digest, block = new_digest(algorithm), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def new_digest(algorithm: Algorithm) -> Digest:
    """A checksum of nothing yet; CanvasError for BLAKE3 without its package."""
    new = hashlib.sha256 if algorithm == "sha256" else _blake3()
    if new is None:
        raise CanvasError("the package blake3 is not installed: pip install blake3, or give sha256")
    digest: Digest = new()
    return digest


@cache
def _blake3() -> Any:
    """The hash object's class; None where the package is not installed."""
    try:
        from blake3 import blake3
    except ImportError:
        return None
    return blake3


def seal_json(content: dict[str, Any]) -> str:
    """JSON text of an object with its `sha256`."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=0) + "\n"


def unseal_json(text: str) -> dict[str, Any] | None:
    """The object of `seal_json` without its `sha256`; None for any other text, one character changed too."""
    try:
        content: dict[str, Any] = json.loads(text)
        content.pop("sha256")
        sound = text == seal_json(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return content if sound else None


def read_sealed_json(path: Path) -> dict[str, Any] | None:
    """The object of a file that `seal_json` gave; None for any other file, or none."""
    try:
        return unseal_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
