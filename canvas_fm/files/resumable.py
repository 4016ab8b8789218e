"""Resumable work: a folder of finished parts with checksums, a state file and a lock.

A part is a file of arrays, found by its name. A folder `OUT.unfinished` holds the parts of one result, and
the state file with the inputs that it is made from. Neither is ever trusted: what was damaged, or written
by another version, is computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_atomic, write_text_atomic
from canvas_fm.files.checksum import read_sealed_json, seal_json
from canvas_fm.files.locks import refuse_other_inputs, take_lock
from canvas_fm.files.numpy_errors import UNREADABLE_NUMPY

_log = logging.getLogger(__name__)
_STATE_FILE, _FORMAT, _ABOUT, _DIGEST_BYTES = "mark.json", 1, "_about", 32
Work = TypeVar("Work", bound="ResumableFolder")


class Part(NamedTuple):
    """Named arrays with JSON metadata."""

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]


def write_part(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any] | None = None) -> None:
    """Write arrays and metadata atomically as one file that begins with the sha256 of the rest."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {_ABOUT: np.array(json.dumps(dict(about or {}))), **arrays}
    np.savez(buffer, **named)
    content = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda temporary: temporary.write_bytes(hashlib.sha256(content).digest() + content))


def read_part(path: Path) -> Part | None:
    """Read what `write_part` wrote; None if it is missing or, with a warning, if its checksum differs."""
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
            raise ValueError("its sha256 is another one")
        with np.load(io.BytesIO(content[_DIGEST_BYTES:])) as file:
            arrays = {name: file[name] for name in file.files}
        return Part(arrays, json.loads(str(arrays.pop(_ABOUT))))
    except UNREADABLE_NUMPY as problem:
        _log.warning("%s is damaged (%s); it is computed again", path, problem)
        return None


def check_own_folder(out: Path, *marks: str) -> None:
    """Raise CanvasError if files would be written among those of another program or verb.

    `marks` are the entries by which a folder of the same verb is known, which resumes in it.
    """
    if not out.is_dir() or any((out / mark).exists() for mark in marks):
        return
    if any(out.iterdir()):
        raise CanvasError(
            f"{out} is there already and holds something else; give another --out, or an empty folder"
        )


def unfinished_folder(out: Path) -> Path:
    """The working folder of `out`, `OUT.unfinished`."""
    return out.with_name(out.name + ".unfinished")


class ResumableFolder:
    """The working folder `OUT.unfinished`, locked for one process at a time.

    `inputs` is all that decides the result: resuming work that was begun with other inputs is refused.
    `state` is kept by `save_state` and read when the folder is opened again.
    """

    suffix = ".part"  # of the files of parts

    def __init__(self, out: Path, inputs: Mapping[str, Any]) -> None:
        self.out, self.folder = out, unfinished_folder(out)
        self.inputs: dict[str, Any] = json.loads(json.dumps(dict(inputs)))
        self.state: dict[str, Any] = {}
        self._lock: int | None = None

    def __enter__(self: Work) -> Work:
        if not self.out.parent.is_dir():
            raise CanvasError(f"{self.out} cannot be written: there is no folder {self.out.parent}")
        self.folder.mkdir(exist_ok=True)
        self._lock = take_lock(self.folder, self.out)
        try:
            self._resume()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save_state(self) -> None:
        """Write inputs and state to the state file."""
        content = {"format": _FORMAT, "inputs": self.inputs, "state": self.state}
        write_text_atomic(self.folder / _STATE_FILE, seal_json(content))

    def write(
        self, name: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any] | None = None
    ) -> None:
        """Write a finished part."""
        write_part(self.folder / f"{name}{self.suffix}", arrays, about)

    def read(self, name: str) -> Part | None:
        """Read a finished part; None where it has to be computed."""
        return read_part(self.folder / f"{name}{self.suffix}")

    def remove(self) -> None:
        """Delete the working folder once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _resume(self) -> None:
        existing_files = [path for path in self.folder.iterdir() if path.name != "lock"]
        if existing_files and (content := _read_state_file(self.folder / _STATE_FILE)) is not None:
            refuse_other_inputs(self.folder, content["inputs"], self.inputs)
            self.state = content["state"]
            return
        if existing_files:
            _log.warning(
                "%s was left by another version, or its state file is damaged: everything is computed again",
                self.folder,
            )
        for path in existing_files:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.save_state()


def _read_state_file(path: Path) -> dict[str, Any] | None:
    """Parse a state file; None for anything that `ResumableFolder.save_state` did not write."""
    content = read_sealed_json(path)
    return content if content is not None and content.get("format") == _FORMAT else None
