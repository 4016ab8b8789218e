"""Runs jobs one by one through the library's resumable calls, yielding to requests.

One thread. Of several worker processes one runs jobs, the one that holds the lock; where it is killed another
takes over, and the library goes on from what lies in the job's folder.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.progress import watched
from serving.core.jobs.store import UNFINISHED, Job, JobStore, Progress
from serving.protocol.errors import Refusal, without_folders

if TYPE_CHECKING:
    from serving.core.core import Core

logger = logging.getLogger(__name__)

_BATCH = 16  # crops of a job that go through a CPU together: so long a request may have to wait
_YIELD_S = 2.0  # for so long at most a batch waits for requests to be answered first
_LOOK_S = 0.5
_COUNTED = {"embed": "embedding", "refine": "refining", "detect": "detecting"}
_WRITE_S = 1.0


class _Stopped(Exception):
    """The service stops; the job resumes at the next start."""


class _Cancelled(Exception):
    """The job was cancelled."""


class JobRunner:
    """Thread that runs a store's jobs; `busy` says whether requests wait or run."""

    def __init__(self, core: Core, store: JobStore, busy: Callable[[], bool]) -> None:
        self._core, self.store, self._busy = core, store, busy
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)
        self._now: tuple[str, int] | None = None  # the job that runs, and how far it is

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop at the next step; the job resumes later."""
        self._stop.set()
        self._wake.set()
        self._thread.join(10)
        if not self._thread.is_alive():
            self.store.close()

    def wake(self) -> None:
        """Notify of a new job."""
        self._wake.set()

    def progress(self, job: Job) -> Progress:
        """Progress of a job, to the step if this process runs it."""
        progress, now = job.progress, self._now
        if now is not None and now[0] == job.id and progress.state == "running":
            return progress.but(done=now[1])
        return progress

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                if not (self.store.may_run() and self._next()):
                    self._wake.wait(_LOOK_S)
                    self._wake.clear()
            except Exception:
                logger.exception("the jobs failed")
                self._stop.wait(5)

    def _next(self) -> bool:
        """Run the oldest unfinished job; False if there is none."""
        self.store.clear()
        waiting = [job for job in self.store.jobs() if job.progress.state in UNFINISHED]
        if not waiting:
            return False
        self._run(waiting[0])
        return True

    def _run(self, job: Job) -> None:
        before = job.progress
        began = Progress(state="running", done=before.done, began=before.began or time.time())
        job.record(began)
        self._now = (job.id, before.done)
        try:
            with watched(self._step(job, began)):
                self._work(job)
            job.record(began.but(state="done", done=job.spec.points, ended=time.time()))
        except _Stopped:
            logger.info("job %s is interrupted; it goes on when the service starts again", job.id)
        except _Cancelled:
            logger.info("job %s was taken back", job.id)
        except Exception as problem:
            if job.cancelled:
                return
            if not isinstance(problem, CanvasError | Refusal):
                logger.exception("job %s failed", job.id)
            reached = self._now[1] if self._now else 0
            job.record(began.but(state="failed", done=reached, error=_sentence(problem), ended=time.time()))
        finally:
            self._now = None

    def _step(self, job: Job, began: Progress) -> Callable[[str, int, int], None]:
        written = time.monotonic()

        def step(label: str, done: int, total: int) -> None:
            nonlocal written
            if label == _COUNTED[job.spec.kind]:  # not what a refiner measures of a brain before
                self._now = (job.id, done)
            end = time.monotonic() + _YIELD_S
            while self._busy() and time.monotonic() < end and not self._stop.is_set():
                time.sleep(0.005)
            if self._stop.is_set():
                raise _Stopped
            if job.cancelled:
                raise _Cancelled
            if time.monotonic() - written > _WRITE_S:
                job.record(began.but(done=self._now[1] if self._now else 0))
                written = time.monotonic()

        return step

    def _work(self, job: Job) -> None:
        """The library's call, whose `out` makes it resume."""
        if job.spec.kind == "detect":
            self._detect(job)
        else:
            (self._embed if job.spec.kind == "embed" else self._refine)(job, job.points())

    def _detect(self, job: Job) -> None:
        from canvas_fm.heads.refine.counts.refined_count import mark_counted
        from canvas_fm.inference.detect.detect import detect
        from serving.core.detect import detector_options, find_detector

        spec = job.spec
        detect(
            find_detector(self._core, spec.detector),
            self._core.registered(spec.volume),
            background=None if spec.background is None else self._core.registered(spec.background),
            out=job.out,
            show=False,
            mark=mark_counted,
            **detector_options(self._core),
            **spec.detection,
        )

    def _embed(self, job: Job, points: Points) -> None:
        from canvas_fm.inference.embed.embed import embed_to_store
        from serving.core.models.hosted_refiner import running

        engine = self._core.engine_for(job.spec.encoder)
        embed_to_store(
            engine.encoder,
            self._core.volume(engine, job.spec.volume).volume,
            points,
            job.out,
            pool=job.spec.pool,
            layer=job.spec.layer,
            batch=self._batch(),
            show=False,
            **running(engine.settings) | {"device": engine.encoder.device},
        )

    def _refine(self, job: Job, points: Points) -> None:
        from canvas_fm.heads.refine.apply.apply import refine
        from serving.core.models.hosted_refiner import running
        from serving.core.refine import find_refiner

        hosted, spec = find_refiner(self._core, job.spec.refiner), job.spec
        refine(
            hosted.refiner,
            self._core.registered(spec.volume),
            points,
            **hosted.model_arguments,
            background=None if spec.background is None else self._core.registered(spec.background),
            out=job.out,
            batch=self._batch(),
            show=False,
            **running(self._core.require_ready()) | {"device": str(self._core.device)},
        )

    def _batch(self) -> int:
        most = self._core.max_batch
        return min(_BATCH, most) if self._core.device.type == "cpu" else most


def _sentence(problem: Exception) -> str:
    if isinstance(problem, Refusal):
        return problem.message
    if isinstance(problem, CanvasError):
        return without_folders(str(problem))
    return "an unexpected error, which the server's log describes"
