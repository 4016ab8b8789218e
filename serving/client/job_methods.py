"""Methods of the clients' `jobs`, as generators like those of `serving.client.client_methods`."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Real

from canvas_fm.data.points.points import Points
from canvas_fm.data.points.sidecar import sidecar_of
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import disk_full_as_error, sync_path
from canvas_fm.files.option_sets import takes
from serving.client.client_methods import Request, Steps, without_none
from serving.protocol import npy
from serving.protocol.request_options import JobRequest

_ENDED = ("done", "cancelled")
_KINDS = {".npy": npy.MEDIA_TYPE, ".zip": "application/zip", ".csv": "text/csv"}


@takes(JobRequest, omit=("kind", "volume", "points_zyx", "points_csv"))
def submit(
    kind: str, volume: str, points: Points | Real[np.ndarray, "n 3"] | None = None, **options: Any
) -> Steps[dict[str, Any]]:
    """Submit a job of `kind` embed, refine or detect; returns `id`, `state`, `total`.

    `points` are z, y, x in voxels of level 0 of a registered volume, with columns that are kept; `grid`
    embeds the whole volume. `detect` takes no points, `roi` limits it to a box. Sent again after a lost
    connection it is the same job.
    """
    text = None if points is None else _text(points)
    job = JobRequest.of(kind=kind, volume=volume, points_csv=text, **options)
    body = without_none(job.model_dump(mode="json", exclude_unset=True))
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    return (yield Request("POST", "/v1/jobs", {"json": body, "headers": headers})).json()


def list_jobs() -> Steps[list[dict[str, Any]]]:
    """All jobs that this key may see, oldest first."""
    return (yield Request("GET", "/v1/jobs")).json()["jobs"]


def get(identity: str) -> Steps[dict[str, Any]]:
    """State of a job: `state`, `done` of `total`, and the `error` message of a failed one."""
    return (yield Request("GET", f"/v1/jobs/{identity}")).json()


def wait(identity: str, *, wait_s: float = float("inf"), every_s: float = 2.0) -> Steps[dict[str, Any]]:
    """Wait until a job has finished; CanvasError with its message if it failed, or after `wait_s`."""
    end = time.monotonic() + wait_s
    while (job := (yield from get(identity)))["state"] not in _ENDED:
        if job["state"] == "failed":
            raise CanvasError(f"job {job['id']} failed: {job['error']}")
        if time.monotonic() >= end:
            progress = f"{job['done']} of {job['total']} done"
            raise CanvasError(f"job {job['id']} is {job['state']} after {wait_s:g} s, {progress}")
        yield every_s
    return job


def cancel(identity: str) -> Steps[dict[str, Any]]:
    """Cancel a job, finished or not, and remove its result."""
    return (yield Request("DELETE", f"/v1/jobs/{identity}", repeat=False)).json()


def retry(identity: str) -> Steps[dict[str, Any]]:
    """Resume a job that failed, from where it stopped."""
    return (yield Request("POST", f"/v1/jobs/{identity}/retry", repeat=False)).json()


def fetch(identity: str, out: str | Path) -> Steps[Path]:
    """Save the result as `.npy` or `.zip` (a zipped X.emb.zarr), or as `.csv` of cells.

    The metadata of a `.csv` is saved beside it as `.csv.json`.
    """
    path = Path(out)
    if path.suffix not in _KINDS:
        raise CanvasError(
            f"{path} ends in {path.suffix!r}; results are .npy or .zip (embeddings), or .csv (cells)"
        )
    headers = {"Accept": _KINDS[path.suffix]}
    yield Request("GET", f"/v1/jobs/{identity}/result", {"headers": headers}, out=path)
    if path.suffix == ".csv" and not _begins_with_note(path):  # earlier versions wrote it into the file
        headers = {"Accept": "application/json"}
        yield Request("GET", f"/v1/jobs/{identity}/result", {"headers": headers}, out=sidecar_of(path))
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that is renamed to its final name when complete."""
    part = path.with_name(f".{path.name}.part")
    try:
        with disk_full_as_error(path):
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_path(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _text(points: Points | np.ndarray) -> str:
    """Points and their columns as CSV, less than half the size of JSON."""
    table = points if isinstance(points, Points) else Points(np.asarray(points, np.float64))
    return table.to_csv()


def _begins_with_note(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"#"
