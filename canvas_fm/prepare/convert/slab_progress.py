"""Progress of a conversion on disk: one part for each finished slab."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canvas_fm.files.resumable import ResumableFolder
from canvas_fm.prepare.convert.shards.shard_files import is_whole
from canvas_fm.prepare.sources.source import Source

_STORE = "store"


@dataclass
class SlabResult:
    """Result of a finished slab: its files with size and crc32, damage read as 0, and checksums of source
    files, each by the name of its algorithm."""

    files: dict[str, Sequence[int]] = field(default_factory=dict)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    bad_chunks: list[str] = field(default_factory=list)

    def add(self, other: SlabResult) -> None:
        self.files |= other.files
        self.sources |= other.sources
        self.bad_chunks = sorted({*self.bad_chunks, *other.bad_chunks})


class SlabWork(ResumableFolder):
    """The work on a store, `OUT.unfinished/store`; the parts say which slabs are done."""

    def __enter__(self) -> SlabWork:
        super().__enter__()
        return self

    @property
    def store(self) -> Path:
        """The folder of the store until it takes its name."""
        return self.folder / _STORE

    def done(self, name: str) -> SlabResult | None:
        """Result of a finished slab; None where it has to be written (again)."""
        part = self.read(name)
        if part is None:
            return None
        slab = SlabResult(**part.about)
        for key, digest in slab.sources.items():
            if isinstance(digest, str):  # as version 0 kept it, which had sha256 alone
                slab.sources[key] = {"sha256": digest}
        return slab if is_whole(self.store, slab.files) else None

    def keep(self, name: str, done: SlabResult) -> None:
        """Mark a slab as done: all of its files are flushed."""
        self.write(name, {}, {"files": done.files, "sources": done.sources, "bad_chunks": done.bad_chunks})


def source_list(source: Source, sources: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Size and time of every source file, and its checksum where one was computed."""
    listed = {}
    for file in source.files:
        status, key = file.stat(), source.key(file)
        listed[key] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, **sources.get(key, {})}
    return listed


def settings_sha256(inputs: dict[str, Any]) -> str:
    """A hash over all that decides a store."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
