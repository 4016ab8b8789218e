"""Clicks of a review on disk: one line of JSON each, appended and flushed before it is acknowledged.

What was acknowledged survives a kill at any moment and a power cut; a line that was cut was never
acknowledged and is dropped. Nothing is ever rewritten: to take a click back is a line too.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError, counted
from canvas_fm.files.atomic import disk_full_as_error, sync_path
from canvas_fm.files.locks import try_lock

VERSION = 1


def candidates_sha256(candidates: Points) -> str:
    """Hash of the positions, by which a click log knows its candidates."""
    return hashlib.sha256(np.ascontiguousarray(candidates.zyx, "<f8").tobytes()).hexdigest()


class ClickLog:
    """An append-only file of events, held by one process at a time."""

    def __init__(self, path: str | Path, candidates: Points) -> None:
        self.path, self._lines = Path(path), threading.Lock()
        lock = try_lock(self.path.with_name(self.path.name + ".lock"))
        if lock is None:
            raise CanvasError(
                f"another review writes {self.path}; end it first, or name both annotators in one: "
                "--annotator ANNA BEN"
            )
        self._lock, self._file = lock, -1
        head = {"review": VERSION, "candidates": candidates_sha256(candidates), "rows": len(candidates)}
        try:
            self.events = self._read(head)
        except CanvasError:
            self.close()
            raise
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        if not self.path.stat().st_size:
            self._write([head])
            sync_path(self.path.parent)

    def append(self, *events: dict[str, Any]) -> None:
        """Write events as one piece; they are on the disk when this returns."""
        with self._lines:
            self._write(events)

    def close(self) -> None:
        """Let another process take the click log."""
        for name in ("_file", "_lock"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)

    def _write(self, events: Any) -> None:
        text = "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events)
        with disk_full_as_error(self.path):
            data = text.encode()
            before = os.fstat(self._file).st_size
            if os.write(self._file, data) != len(data):
                os.ftruncate(self._file, before)  # half a line would join the next one
                raise CanvasError(f"{self.path} could not be written; is the disk full?")
            os.fsync(self._file)

    def _read(self, head: dict[str, Any]) -> list[dict[str, Any]]:
        if not self.path.exists() or not self.path.stat().st_size:
            return []
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            os.truncate(self.path, len(whole))
        lines = list(_parsed(self.path, whole))
        if not lines:
            return []
        if lines[0] != head:
            if lines[0].get("review") != VERSION:
                raise CanvasError(f"{self.path} is no click log of a review; give another --out")
            raise CanvasError(
                f"{self.path} holds clicks on {counted(lines[0]['rows'], 'other candidate')}; "
                "give the candidates "
                "that it was made with, or another --out"
            )
        return lines[1:]


def _parsed(path: Path, text: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            event = json.loads(line)
        except ValueError as problem:
            raise CanvasError(
                f"{path}, line {number} is damaged: {problem}; restore the file from a copy, or "
                "remove the line"
            ) from problem
        if not isinstance(event, dict):
            raise CanvasError(f"{path}, line {number} is no event of a review")
        yield event
