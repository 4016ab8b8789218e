"""`last.pt`: checkpoint of a training with a checksum, written atomically."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_atomic

_MARK = b"\nsha256:"
_TAIL = len(_MARK) + 64


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; the file ends with the sha256 of its contents.

    Killed at any moment, the file is the old one or the new one. Raises StorageFull on a full disk, and the
    old one stays.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    tail = _MARK + hashlib.sha256(buffer.getbuffer()).hexdigest().encode()
    buffer.seek(0, io.SEEK_END)
    buffer.write(tail)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())

    write_atomic(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; CanvasError if its checksum differs."""
    data = path.read_bytes()
    body, tail = data[:-_TAIL], data[-_TAIL:]
    if tail != _MARK + hashlib.sha256(body).hexdigest().encode():
        raise CanvasError(
            f"{path} is damaged: its content does not give the checksum at its end; copy it anew from where "
            "it was whole, or start another run"
        )
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
