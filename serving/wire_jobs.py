"""What the Python clients send and read of jobs."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from canvas_fm.data.disk import disk_full_is_said, sync_folder
from canvas_fm.data.points import Points
from canvas_fm.errors import CanvasError
from serving import npy
from serving.wire import Asked

_ENDED = ("done", "failed", "cancelled")
_KINDS = {".npy": npy.MEDIA_TYPE, ".zip": "application/zip", ".csv": "text/csv"}


def submit_request(asked: dict[str, Any], points: Points | np.ndarray | None) -> Asked:
    """A job; sent again after a lost connection it is the same job."""
    body = {name: value for name, value in asked.items() if value is not None}
    if points is not None:
        body["points_csv"] = _text(points)
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    return {"method": "POST", "url": "/v1/jobs", "json": body, "headers": headers}


def job_request(method: str, identity: str = "", what: str = "") -> Asked:
    """Something of one job, or of all."""
    tail = "/".join(part for part in (identity, what) if part)
    return {"method": method, "url": f"/v1/jobs/{tail}".rstrip("/")}


def result_request(identity: str, out: Path) -> Asked:
    """A job's result as the kind of file that `out` is called."""
    if out.suffix not in _KINDS:
        raise CanvasError(
            f"{out} ends in {out.suffix!r}; results are .npy or .zip (embeddings), or .csv (refined)"
        )
    return job_request("GET", identity, "result") | {"headers": {"Accept": _KINDS[out.suffix]}}


def is_over(job: dict[str, Any]) -> bool:
    """Whether a job has ended; CanvasError with its sentence where it failed."""
    if job["state"] == "failed":
        raise CanvasError(f"job {job['id']} failed: {job['error']}")
    return job["state"] in _ENDED


def not_over(job: dict[str, Any], wait_s: float) -> CanvasError:
    """What is said of a job that was waited for long enough."""
    return CanvasError(
        f"job {job['id']} is {job['state']} after {wait_s:g} s, {job['done']} of {job['total']} done"
    )


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name when all of it is there."""
    part = path.with_name(f".{path.name}.part")
    try:
        with disk_full_is_said(path):
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _text(points: Points | np.ndarray) -> str:
    """Points and their columns as CSV, which takes less than half of what JSON does."""
    given = points if isinstance(points, Points) else Points(np.asarray(points, np.float64))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.csv"
        given.write(path)
        return path.read_text(encoding="utf-8")
