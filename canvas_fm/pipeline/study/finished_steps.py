"""Record of a finished step: its inputs, and a digest of its files."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from canvas_fm.data.store.checked_store import MANIFEST
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.checksum import seal_json, sha256, unseal_json

_log = logging.getLogger(__name__)
State = Literal["begun", "done", "outdated"]


@dataclass(frozen=True)
class Record:
    """State of a step's work; `files` is the digest of its folder once it is done."""

    state: State
    inputs: dict[str, Any]
    files: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    finished: str = ""

    def differing(self, inputs: dict[str, Any]) -> list[str]:
        """Names of the inputs that are others now."""
        return sorted(key for key in {**self.inputs, **inputs} if self.inputs.get(key) != inputs.get(key))


def read_record(path: Path) -> Record | None:
    """The record; None where there is none or it is damaged, so that the step is done again."""
    if not path.exists():
        return None
    content = unseal_json(path.read_text(encoding="utf-8", errors="replace"))
    try:
        return None if content is None else Record(**content)
    except TypeError:
        return None


def write_record(path: Path, record: Record) -> None:
    """Replace the record atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, seal_json(json.loads(json.dumps(asdict(record)))))


def folder_digest(folder: Path) -> str:
    """A hash over all files of a folder; of a store with a manifest over that and the sizes that it lists."""
    digest = hashlib.sha256()
    stores = [path.parent for path in sorted(folder.rglob(MANIFEST))]
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if any(path.is_relative_to(store) for store in stores):
            line: list[Any] = [path.relative_to(folder).as_posix(), path.stat().st_size]
            line += [sha256(path)] if path.name == MANIFEST else []
        else:
            line = [path.relative_to(folder).as_posix(), sha256(path)]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def begin(folder: Path, path: Path, inputs: dict[str, Any]) -> None:
    """Make a step's folder ready: begun work of the same inputs stays, that of others is deleted.

    A folder that no record speaks of is refused: it was not made by the study.
    """
    record = read_record(path)
    if record is None and folder.exists() and any(folder.iterdir()):
        if not path.exists():
            raise CanvasError(
                f"{folder} is there already and was not made by this study; delete it, or give another --out"
            )
        _log.warning("%s is damaged: the step is done again", path)
        record = Record("outdated", {})
    if record is not None and (record.state != "begun" or record.inputs != inputs):
        write_record(path, Record("outdated", {}))  # a kill while the folder is deleted leaves no mixture
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.rglob(".*.tmp"):  # by a kill in the middle of an atomic write
        left.unlink()
    write_record(path, Record("begun", inputs))


def inputs_sha256(inputs: dict[str, Any]) -> str:
    """A hash over all inputs of a step's work."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
