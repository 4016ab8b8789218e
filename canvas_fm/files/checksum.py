"""Checksums of files, and JSON that carries its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """The sha256 of a file's contents, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
