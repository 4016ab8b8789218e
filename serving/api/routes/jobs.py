"""Routes under `/v1/jobs`: submit, inspect, cancel, retry, fetch the result."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from canvas_fm.data.points.sidecar import is_as_written, sidecar_of
from canvas_fm.errors import DamagedStore
from serving.api.bodies import read_with_digest
from serving.api.description.endpoint import JSON, NPY, Endpoint
from serving.api.description.query import no_query
from serving.api.middleware.request_middleware import HOLDER
from serving.core.core import Core
from serving.core.jobs.check_request import check_request
from serving.core.jobs.results import npy_of, zip_of
from serving.core.jobs.runner import JobRunner
from serving.core.jobs.store import UNFINISHED, Job
from serving.protocol import npy
from serving.protocol.errors import Refusal
from serving.protocol.request_options import JobRequest
from serving.protocol.schemas import JobInfo

_ZIP = "application/zip"
_DAMAGED = "the result is damaged; take the job back (DELETE) and send it again"


async def submit(core: Core, request: Request) -> Response:
    """Embed or refine points of a registered volume, or detect its cells, in the background."""
    jobs, owner = _jobs(request), request.scope.get(HOLDER, "")
    body, digest = await read_with_digest(core, request, JobRequest)
    identity = _identity(request, owner)
    if (earlier := jobs.store.find(identity, owner)) is not None:
        if earlier.spec.request != digest:
            raise Refusal(409, "that Idempotency-Key was sent with another job; give a new one")
        return _reply(jobs, earlier, 201)  # as the first time
    _check_number(core, jobs, owner)
    try:
        async with asyncio.timeout(core.limits.deadline_s):
            job_spec, points = await asyncio.to_thread(check_request, core, body, owner, digest)
        job = await asyncio.to_thread(jobs.store.submit, identity, job_spec, points)
    except TimeoutError as problem:
        raise Refusal(
            504, f"the job was not read within {core.limits.deadline_s:g} s; send fewer points"
        ) from problem
    if job.cancelled:
        raise Refusal(409, "the job of that Idempotency-Key was taken back; give a new one")
    jobs.wake()
    return _reply(jobs, job, 201)


async def list_jobs(core: Core, request: Request) -> Response:
    """The caller's jobs, oldest first."""
    jobs = _jobs(request)
    no_query(request)
    owned = await asyncio.to_thread(jobs.store.jobs, request.scope.get(HOLDER, ""))
    return JSONResponse({"jobs": [_info(jobs, job).model_dump(mode="json") for job in owned]})


async def one_job(core: Core, request: Request) -> Response:
    """State and progress of a job."""
    jobs, job = _job_of(request)
    return _reply(jobs, job)


async def cancel(core: Core, request: Request) -> Response:
    """Cancel a job, finished or not, and remove its result."""
    jobs, job = _job_of(request)
    info = _info(jobs, job).model_copy(update={"state": "cancelled", "result": None})
    job.cancel()
    jobs.wake()
    return JSONResponse(info.model_dump(mode="json"))


async def retry(core: Core, request: Request) -> Response:
    """Resume a failed job, after a full disk for example."""
    jobs, job = _job_of(request)
    progress = job.progress
    if progress.state != "failed":
        raise Refusal(409, f"the job is {progress.state}; only one that failed goes on")
    job.record(progress.but(state="queued", error=None, ended=None))
    jobs.wake()
    return _reply(jobs, job)


async def result(core: Core, request: Request) -> Response:
    """Result of a job: embeddings as `.npy`, or as a zipped X.emb.zarr; cells as CSV.

    Of the CSV, `Accept: application/json` gives the metadata that stands beside it.
    """
    _, job = _job_of(request)
    state = job.progress.state
    if state != "done":
        raise Refusal(409, f"the job is {state}; its result is there once it is done")
    if job.spec.kind != "embed":
        if not await asyncio.to_thread(is_as_written, job.out):
            raise Refusal(500, _DAMAGED)
        sidecar = sidecar_of(job.out)
        if request.headers.get("accept", "") == JSON:
            return FileResponse(sidecar, media_type=JSON, filename=sidecar.name)
        return FileResponse(job.out, media_type="text/csv; charset=utf-8", filename="cells.csv")
    if _ZIP in request.headers.get("accept", ""):
        return StreamingResponse(zip_of(job.out), media_type=_ZIP, headers=_named("embeddings.emb.zarr.zip"))
    from canvas_fm.inference.embed.store.embedding_store import Embeddings

    try:
        embeddings = await asyncio.to_thread(Embeddings.open, job.out)
    except DamagedStore as problem:
        raise Refusal(500, _DAMAGED) from problem
    length, pieces = npy_of(embeddings)
    headers = _named("embeddings.npy") | {
        "Content-Length": str(length),
        "X-Model": embeddings.encoder_sha256,
    }
    return StreamingResponse(pieces, media_type=npy.MEDIA_TYPE, headers=headers)


def _named(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _jobs(request: Request) -> JobRunner:
    runner: JobRunner | None = request.app.state.jobs
    if runner is None:
        raise Refusal(403, "no jobs are run here: the service was started without --jobs FOLDER")
    return runner


def _job_of(request: Request) -> tuple[JobRunner, Job]:
    jobs, identity = _jobs(request), request.path_params["id"]
    no_query(request)
    job = jobs.store.find(identity, request.scope.get(HOLDER, ""))
    if job is None:
        raise Refusal(404, f"no job has the id {identity[:50]!r}")
    return jobs, job


def _identity(request: Request, owner: str) -> str:
    """A new id, or that of the client's Idempotency-Key, so that a repeated request is one job."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return uuid.uuid4().hex
    if not 8 <= len(key) <= 200:
        raise Refusal(422, f"the Idempotency-Key has {len(key)} characters; give 8 to 200, such as a UUID")
    return hashlib.sha256(json.dumps([owner, key]).encode()).hexdigest()[:32]


def _check_number(core: Core, jobs: JobRunner, owner: str) -> None:
    """Refuse (429) if too many jobs wait, (409) if the owner keeps too many."""
    every, limits = jobs.store.jobs(), core.limits
    if sum(job.spec.owner == owner for job in every) >= limits.max_kept_jobs:
        raise Refusal(
            409, f"{limits.max_kept_jobs} jobs are kept, finished ones too; DELETE those that you do not need"
        )
    if sum(job.progress.state in UNFINISHED for job in every) >= limits.max_jobs:
        raise Refusal(429, f"{limits.max_jobs} jobs wait or run already; come back in 60 s", retry_after_s=60)


def _reply(jobs: JobRunner, job: Job, status: int = 200) -> Response:
    return JSONResponse(_info(jobs, job).model_dump(mode="json"), status)


def _info(jobs: JobRunner, job: Job) -> JobInfo:
    spec, progress = job.spec, jobs.progress(job)
    return JobInfo(
        id=job.id,
        kind=spec.kind,
        volume=spec.volume,
        encoder=spec.encoder,
        pool=spec.pool,
        layer=spec.layer,
        refiner=spec.refiner,
        detector=spec.detector,
        state=progress.state,
        done=progress.done,
        total=spec.points,
        error=progress.error,
        created=_time(spec.created),
        ended=None if progress.ended is None else _time(progress.ended),
        result=f"/v1/jobs/{job.id}/result" if progress.state == "done" else None,
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


ROUTES = [
    Endpoint(
        "POST", "/jobs", submit, {JSON: JobInfo}, bodies={JSON: JobRequest}, status=201, idempotency_key=True
    ),
    Endpoint("GET", "/jobs", list_jobs, {JSON: {"jobs": JobInfo}}),
    Endpoint("GET", "/jobs/{id}", one_job, {JSON: JobInfo}),
    Endpoint("DELETE", "/jobs/{id}", cancel, {JSON: JobInfo}),
    Endpoint("POST", "/jobs/{id}/retry", retry, {JSON: JobInfo}),
    Endpoint("GET", "/jobs/{id}/result", result, {NPY: None, _ZIP: None, "text/csv": None, JSON: None}),
]
