"""What the methods of the clients' `jobs` send, and what they read of the replies."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import disk_full_is_said, sync_folder
from serving.client.requests import Asked, Call, given, json_of
from serving.protocol import npy

_ENDED = ("done", "failed", "cancelled")
_KINDS = {".npy": npy.MEDIA_TYPE, ".zip": "application/zip", ".csv": "text/csv"}


def submit(
    kind: str,
    volume: str,
    points: Points | np.ndarray | None,
    grid: Sequence[int] | None,
    model: str | None,
    pool: str | None,
    layer: int | None,
    refiner: str | None,
    background: str | None,
) -> Call[dict[str, Any]]:
    """A job; sent again after a lost connection it is the same job."""
    body: dict[str, Any] = {"kind": kind, "volume": volume, "grid": grid}
    body |= {"model": model, "pool": pool, "layer": layer, "refiner": refiner, "background": background}
    body = given(body)
    if points is not None:
        body["points_csv"] = _text(points)
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    return Call([{"method": "POST", "url": "/v1/jobs", "json": body, "headers": headers}], json_of)


def every() -> Call[list[dict[str, Any]]]:
    return Call([_of_job("GET")], lambda reply: [*reply.json()["jobs"]])


def one(identity: str) -> Call[dict[str, Any]]:
    return Call([_of_job("GET", identity)], json_of)


def cancel(identity: str) -> Call[dict[str, Any]]:
    return Call([_of_job("DELETE", identity)], json_of, repeat=False)


def retry(identity: str) -> Call[dict[str, Any]]:
    return Call([_of_job("POST", identity, "retry")], json_of, repeat=False)


def result_request(identity: str, out: Path) -> Asked:
    """A job's result as the kind of file that `out` is called."""
    if out.suffix not in _KINDS:
        raise CanvasError(
            f"{out} ends in {out.suffix!r}; results are .npy or .zip (embeddings), or .csv (refined)"
        )
    return _of_job("GET", identity, "result") | {"headers": {"Accept": _KINDS[out.suffix]}}


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


def _of_job(method: str, identity: str = "", what: str = "") -> Asked:
    """Something of one job, or of all."""
    tail = "/".join(part for part in (identity, what) if part)
    return {"method": method, "url": f"/v1/jobs/{tail}".rstrip("/")}


def _text(points: Points | np.ndarray) -> str:
    """Points and their columns as CSV, which takes less than half of what JSON does."""
    given = points if isinstance(points, Points) else Points(np.asarray(points, np.float64))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.csv"
        given.write(path)
        return path.read_text(encoding="utf-8")
