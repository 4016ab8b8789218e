"""The routes under `/v1/jobs`: submit, look, take back, go on after a failure, fetch the result."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from canvas_fm.data.points.points import Points, as_zyx
from canvas_fm.errors import CanvasError, DamagedStore, StorageFull
from canvas_fm.inference.embed.input_checks import check_points
from serving.api.bodies import read_model
from serving.api.query import given
from serving.core.core import Core
from serving.core.embed_crops import key_of
from serving.core.refine import find_refiner
from serving.jobs.results import npy_of, zip_of
from serving.jobs.runner import JobRunner
from serving.jobs.store import UNFINISHED, Asked, Job
from serving.middleware.guard import HOLDER
from serving.protocol import npy
from serving.protocol.errors import Refusal, refused
from serving.protocol.schemas import JobInfo, JobRequest

_ZIP = "application/zip"


async def submit(core: Core, request: Request) -> Response:
    """Embed or refine points of a registered volume in the background."""
    jobs, owner = _jobs(core, request), request.scope.get(HOLDER, "")
    given(request, ())
    asked = await read_model(request, JobRequest)
    digest = hashlib.sha256(asked.model_dump_json().encode()).hexdigest()
    identity = _identity(request, owner)
    if (there := jobs.store.find(identity, owner)) is not None:
        if there.asked.request != digest:
            raise Refusal(409, "that Idempotency-Key was sent with another job; give a new one")
        return _said(jobs, there, 201)  # as the first time
    _check_number(core, jobs, owner)
    try:
        what, points = await asyncio.to_thread(_understood, core, asked, owner, digest)
        job = await asyncio.to_thread(jobs.store.submit, identity, what, points)
    except StorageFull as problem:
        raise refused(problem, 507) from problem
    except CanvasError as problem:
        raise refused(problem) from problem
    if job.cancelled:
        raise Refusal(409, "the job of that Idempotency-Key was taken back; give a new one")
    jobs.wake()
    return _said(jobs, job, 201)


async def list_jobs(core: Core, request: Request) -> Response:
    """The jobs of whoever asks, oldest first."""
    jobs = _jobs(core, request)
    given(request, ())
    mine = await asyncio.to_thread(jobs.store.jobs, request.scope.get(HOLDER, ""))
    return JSONResponse({"jobs": [_info(jobs, job).model_dump(mode="json") for job in mine]})


async def one_job(core: Core, request: Request) -> Response:
    """How far a job is."""
    jobs, job = _found(core, request)
    return _said(jobs, job)


async def cancel(core: Core, request: Request) -> Response:
    """Take a job back, finished or not, and remove what it made."""
    jobs, job = _found(core, request)
    said = _info(jobs, job).model_copy(update={"state": "cancelled", "result": None})
    try:
        job.cancel()
    except StorageFull as problem:
        raise refused(problem, 507) from problem
    jobs.wake()
    return JSONResponse(said.model_dump(mode="json"))


async def retry(core: Core, request: Request) -> Response:
    """Let a job that failed go on from where it stopped, after a full disk for example."""
    jobs, job = _found(core, request)
    progress = job.progress
    if progress.state != "failed":
        raise Refusal(409, f"the job is {progress.state}; only one that failed goes on")
    job.mark(progress.but(state="queued", error=None, ended=None))
    jobs.wake()
    return _said(jobs, job)


async def result(core: Core, request: Request) -> Response:
    """What a job made: embeddings as `.npy`, or as a zipped X.emb.zarr; candidates with p_cell as CSV."""
    _, job = _found(core, request)
    state = job.progress.state
    if state != "done":
        raise Refusal(409, f"the job is {state}; its result is there once it is done")
    if job.asked.kind == "refine":
        return FileResponse(job.out, media_type="text/csv; charset=utf-8", filename="cells.csv")
    if _ZIP in request.headers.get("accept", ""):
        return StreamingResponse(zip_of(job.out), media_type=_ZIP, headers=_named("embeddings.emb.zarr.zip"))
    from canvas_fm.inference.embed.embedding_store import Embeddings

    try:
        embeddings = await asyncio.to_thread(Embeddings.open, job.out)
    except DamagedStore as problem:
        raise Refusal(500, "the result is damaged; take the job back and send it again") from problem
    length, pieces = npy_of(embeddings)
    headers = _named("embeddings.npy") | {
        "Content-Length": str(length),
        "X-Model": embeddings.encoder_sha256,
    }
    return StreamingResponse(pieces, media_type=npy.MEDIA_TYPE, headers=headers)


def _named(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _jobs(core: Core, request: Request) -> JobRunner:
    core.require_ready()
    runner: JobRunner | None = request.app.state.jobs
    if runner is None:
        raise Refusal(403, "no jobs are run here: the service was started without --jobs FOLDER")
    return runner


def _found(core: Core, request: Request) -> tuple[JobRunner, Job]:
    jobs, identity = _jobs(core, request), request.path_params["id"]
    given(request, ())
    job = jobs.store.find(identity, request.scope.get(HOLDER, ""))
    if job is None:
        raise Refusal(404, f"no job has the id {identity[:50]!r}")
    return jobs, job


def _identity(request: Request, owner: str) -> str:
    """A new id, or the one that the client's Idempotency-Key stands for: sent twice it is one job."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return uuid.uuid4().hex
    if not 8 <= len(key) <= 200:
        raise Refusal(422, f"the Idempotency-Key has {len(key)} characters; give 8 to 200, such as a UUID")
    return hashlib.sha256(json.dumps([owner, key]).encode()).hexdigest()[:32]


def _check_number(core: Core, jobs: JobRunner, owner: str) -> None:
    """Refuse (429) where too many wait already, (409) where the owner keeps too many."""
    every, limits = jobs.store.jobs(), core.limits
    if sum(job.asked.owner == owner for job in every) >= limits.max_kept_jobs:
        raise Refusal(
            409, f"{limits.max_kept_jobs} jobs are kept, finished ones too; DELETE those that you do not need"
        )
    if sum(job.progress.state in UNFINISHED for job in every) >= limits.max_jobs:
        raise Refusal(429, f"{limits.max_jobs} jobs wait or run already; come back in 60 s", retry_after_s=60)


def _understood(core: Core, asked: JobRequest, owner: str, digest: str) -> tuple[Asked, Points]:
    """The job and its points, once all that can be checked before it runs is checked."""
    volume = core.registered(asked.volume)
    what = Asked(
        kind=asked.kind, volume=asked.volume, points=0, owner=owner, request=digest, created=time.time()
    )
    if asked.kind == "embed":
        _refuse_keys(asked, "refiner", "background")
        engine = core.engine_for(asked.model)
        core.volume(engine, asked.volume)
        key = key_of(engine, asked.pool, asked.layer)
        what.encoder, what.pool, what.layer = engine.encoder.sha256, key.pool, key.layer
    else:
        _refuse_keys(asked, "model", "pool", "layer", "grid")
        hosted = find_refiner(core, asked.refiner)
        background = None if asked.background is None else core.registered(asked.background)
        hosted.extractor.check(volume, background)
        what.refiner, what.background = hosted.refiner.sha256_, asked.background
    points = _points(core, asked)
    most = core.limits.max_job_points
    if len(points) > most:
        raise Refusal(413, f"{len(points)} points in one job; {most} are the most")
    check_points(points.zyx, volume.shape_zyx)
    what.points = len(points)
    return what, points


def _refuse_keys(asked: JobRequest, *keys: str) -> None:
    for key in keys:
        if getattr(asked, key) is not None:
            raise Refusal(422, f"{key} means nothing to a job of kind {asked.kind}; leave it out")


def _points(core: Core, asked: JobRequest) -> Points:
    ways = [way for way in ("points_zyx", "points_csv", "grid") if getattr(asked, way) is not None]
    if len(ways) != 1:
        raise Refusal(422, "give one of points_zyx, points_csv and grid")
    if asked.points_zyx is not None:
        return Points(as_zyx(asked.points_zyx))
    if asked.points_csv is not None:
        with tempfile.TemporaryDirectory(prefix="points-") as folder:
            path = Path(folder) / "points_csv.csv"
            path.write_text(asked.points_csv, encoding="utf-8")
            return Points.read(path)
    assert asked.grid is not None
    return _grid(core, asked, asked.grid)


def _grid(core: Core, asked: JobRequest, step_zyx: tuple[int, int, int]) -> Points:
    """Points that tile the volume, once they are known to be few enough to be made."""
    from canvas_fm.inference.embed.grid_points import grid_points

    engine, most = core.engine_for(asked.model), core.limits.max_job_points
    volume = core.volume(engine, asked.volume).volume
    count = math.prod(-(-size // step) for size, step in zip(volume.shape_zyx, step_zyx, strict=True))
    if count > 2 * most:  # crops stay inside the volume, so that there are fewer
        raise Refusal(413, f"a grid of about {count} points; {most} are the most in one job")
    settings = engine.settings
    return grid_points(
        volume,
        engine.encoder.config,
        step_zyx,
        resample=settings.resample,
        ignore_voxel_size=settings.ignore_voxel_size,
    )


def _said(jobs: JobRunner, job: Job, status: int = 200) -> Response:
    return JSONResponse(_info(jobs, job).model_dump(mode="json"), status)


def _info(jobs: JobRunner, job: Job) -> JobInfo:
    asked, progress = job.asked, jobs.progress(job)
    return JobInfo(
        id=job.id,
        kind=asked.kind,
        volume=asked.volume,
        encoder=asked.encoder,
        pool=asked.pool,
        layer=asked.layer,
        refiner=asked.refiner,
        state=progress.state,
        done=progress.done,
        total=asked.points,
        error=progress.error,
        created=_time(asked.created),
        ended=None if progress.ended is None else _time(progress.ended),
        result=f"/v1/jobs/{job.id}/result" if progress.state == "done" else None,
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


ROUTES: list[tuple[str, str, Callable[[Core, Request], Awaitable[Response]]]] = [
    ("POST", "/jobs", submit),
    ("GET", "/jobs", list_jobs),
    ("GET", "/jobs/{id}", one_job),
    ("DELETE", "/jobs/{id}", cancel),
    ("POST", "/jobs/{id}/retry", retry),
    ("GET", "/jobs/{id}/result", result),
]
