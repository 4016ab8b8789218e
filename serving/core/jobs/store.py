"""Jobs on disk: specification, progress, result.

`FOLDER/ID/` holds `job.json` (what was asked for, never changed, with its own sha256 and that of the points),
`points.csv`, `state.json`, and the result.
The folder takes its name once all that was asked for lies in it; a state is replaced as a whole. A job that
was taken back carries the file `cancelled` and is removed by the process that runs jobs.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import disk_full_as_error, sync_path, write_text_atomic
from canvas_fm.files.checksum import read_sealed_json, seal_json, sha256
from canvas_fm.files.locks import try_lock

logger = logging.getLogger(__name__)

POINTS, EMBEDDINGS, CELLS = "points.csv", "embeddings.emb.zarr", "cells.csv"
_JOB, _STATE, _CANCELLED = "job.json", "state.json", "cancelled"
_ID = re.compile(r"[0-9a-f]{32}")
State = Literal["queued", "running", "done", "failed"]
UNFINISHED = ("queued", "running")


class JobSpec(BaseModel):
    """Specification of a job: kind, models, owner; `request` is a hash of the request."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["embed", "refine", "detect"]
    volume: str
    points: int
    """Steps of the work: points, or of detect tiles."""
    encoder: str | None = None
    pool: str | None = None
    layer: int | None = None
    refiner: str | None = None
    detector: str | None = None
    detection: dict[str, Any] = {}
    background: str | None = None
    owner: str
    request: str
    created: float
    points_sha256: str | None = None
    """Of the file of points; None in a job of an earlier version."""


class Progress(BaseModel):
    """Progress of a job; `error` is the message of a failed one."""

    state: State = "queued"
    done: int = 0
    error: str | None = None
    began: float | None = None
    ended: float | None = None

    def but(self, **changes: object) -> Progress:
        """A copy with some fields changed."""
        return self.model_copy(update=changes)


class Job:
    """The folder of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, folder.name
        self.spec = _read_spec(folder / _JOB)
        self._unwritten: Progress | None = None  # where the disk did not take it
        self._final: Progress | None = None

    @property
    def progress(self) -> Progress:
        """State as last written; a damaged one counts as new."""
        if (known := self._unwritten or self._final) is not None:
            return known
        try:
            progress = Progress.model_validate_json((self.folder / _STATE).read_bytes())
        except (OSError, ValidationError):
            return Progress()
        if progress.state == "done":  # which it stays; many finished jobs are looked at often
            self._final = progress
        return progress

    def record(self, progress: Progress) -> None:
        """Write the state; on a full disk it is kept in memory until the next write."""
        try:
            write_text_atomic(self.folder / _STATE, progress.model_dump_json())
            self._unwritten = None
        except (OSError, CanvasError) as problem:
            logger.error("the state of job %s cannot be written: %s", self.id, problem)
            self._unwritten = progress

    @property
    def cancelled(self) -> bool:
        return (self.folder / _CANCELLED).exists() or not self.folder.is_dir()

    def cancel(self) -> None:
        """Cancel; the job is no longer visible."""
        with disk_full_as_error(self.folder):
            (self.folder / _CANCELLED).touch()
            sync_path(self.folder)

    @property
    def out(self) -> Path:
        """Path of the result."""
        return self.folder / (EMBEDDINGS if self.spec.kind == "embed" else CELLS)

    def points(self) -> Points:
        """The points that were sent; CanvasError if their file is another one now."""
        path = self.folder / POINTS
        if self.spec.points_sha256 not in (None, sha256(path)):
            raise CanvasError("the points of the job were damaged on the service's disk; send the job again")
        return Points.read(path)

    def remove(self) -> None:
        """Delete the folder, marks last, so that an interrupted removal is repeated."""
        for path in self.folder.iterdir():
            if path.name != _CANCELLED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.folder)


def _read_spec(path: Path) -> JobSpec:
    """A job's specification; ValueError if it was damaged. Earlier versions wrote it without its sha256."""
    content = path.read_bytes()
    sealed = read_sealed_json(path)
    return JobSpec.model_validate_json(content) if sealed is None else JobSpec.model_validate(sealed)


class JobStore:
    """Folder of all jobs; several processes submit and read, one runs."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._held: dict[str, Job] = {}
        self._lock: int | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)  # others of this machine see no job
        except OSError as problem:
            raise CanvasError(
                f"the folder of jobs {self.folder} cannot be used: {problem.strerror}"
            ) from problem

    def submit(self, identity: str, spec: JobSpec, points: Points) -> Job:
        """Store a new job atomically; StorageFull if the disk is full; an existing identity is returned."""
        with disk_full_as_error(self.folder):
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
            try:
                points.write(temporary / POINTS)
                spec = spec.model_copy(update={"points_sha256": sha256(temporary / POINTS)})
                write_text_atomic(temporary / _JOB, seal_json(spec.model_dump(mode="json")))
                sync_path(temporary)
                target = self.folder / identity
                if target.exists() and self._job(identity) is None:  # damaged: the same job is taken anew
                    shutil.rmtree(target)
                if not target.exists():
                    temporary.rename(target)
                    sync_path(self.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        job = self._job(identity)
        assert job is not None
        return job

    def find(self, identity: str, owner: str) -> Job | None:
        """A job by id, if it belongs to the owner."""
        job = self._job(identity) if _ID.fullmatch(identity) else None
        return None if job is None or job.cancelled or job.spec.owner != owner else job

    def jobs(self, owner: str | None = None) -> list[Job]:
        """Jobs of an owner, or all, oldest first."""
        active = [job for job in self._all() if not job.cancelled]
        owned = [job for job in active if owner is None or job.spec.owner == owner]
        return sorted(owned, key=lambda job: (job.spec.created, job.id))

    def clear(self) -> None:
        """Delete cancelled and half-submitted jobs; for the process that runs jobs."""
        for job in self._all():
            if job.cancelled:
                self._quietly(job.remove)
                self._held.pop(job.id, None)
        for left in self.folder.glob(".new-*"):
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left, ignore_errors=True)

    def may_run(self) -> bool:
        """Acquire the right to run jobs for this process; False if another has it."""
        if self._lock is None:
            self._lock = try_lock(self.folder / ".lock")
        return self._lock is not None

    def close(self) -> None:
        """Release the right to run jobs."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _all(self) -> Iterator[Job]:
        for path in self.folder.iterdir():
            if _ID.fullmatch(path.name) and (job := self._job(path.name)) is not None:
                yield job

    def _job(self, identity: str) -> Job | None:
        if (cached := self._held.get(identity)) is not None and cached.folder.is_dir():
            return cached
        try:
            job = self._held[identity] = Job(self.folder / identity)
        except (OSError, ValueError) as problem:
            if (self.folder / identity).is_dir():
                logger.error("the job in %s cannot be read: %s", self.folder / identity, problem)
            return None
        return job

    @staticmethod
    def _quietly(work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as problem:
            logger.error("a job that was taken back cannot be removed: %s", problem)
