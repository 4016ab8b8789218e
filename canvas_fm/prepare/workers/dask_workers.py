"""Tiles of a job computed in this process or by Dask workers, with the same results."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import cache
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.models.allocator import keep_freed_memory
from canvas_fm.prepare.workers.cores import usable_cores

R = TypeVar("R", covariant=True)
_AHEAD = 4  # tiles that wait at each worker
_WAIT_S = 120  # for a tile, before it is looked whether workers are left
_RESULT_S = 30  # for a result on its way, which a worker that dies takes along
_RETRIES = 2  # of a tile that fails otherwise than by a sentence of ours
# Dask samples every thread's stack 100 times a second and looks after its event loop 50 times: of four
# processes that wait or compute for seconds on end that took .1 CPU s a second.
_SELDOM = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.worker.memory.monitor-interval": "500ms",
}
# Its pages are off; they are served all the same, on a port that a second command would be warned of.
_ANY_PORT = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
# A worker's tiles are computed in a thread. Of an arena of its own each array above 64 MB is mapped anew.
_ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


@runtime_checkable
class Tiled(Protocol[R]):
    """Protocol: a picklable job that is computed tile by tile."""

    def tile(self, number: int) -> R: ...


def map_tiles(
    job: Tiled[R], numbers: Iterable[int], *, workers: int = 1, scheduler: str | None = None
) -> Iterator[tuple[int, R]]:
    """Yield (number, result) of each tile as it completes; in order without workers.

    More than one worker, or a `scheduler` (tcp://host:8786), need Dask; volumes and models are then opened by
    the workers at the same paths. Memory is that of a few tiles a worker. A tile that fails is tried again, a
    worker that dies is replaced and its tiles are computed by others; CanvasError for a tile that fails or
    ends its worker again and again.
    """
    if workers == 1 and scheduler is None:
        yield from ((number, job.tile(number)) for number in numbers)
        return
    numbers = list(numbers)
    if not numbers:
        return
    with closing(_by_dask(job, numbers, workers, scheduler)) as results:
        yield from results


def _by_dask(
    job: Tiled[Any], numbers: list[int], workers: int, scheduler: str | None
) -> Generator[tuple[int, Any]]:
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as problem:
        raise MissingExtra("dask.distributed", "dask", "more than one worker") from problem
    cluster = None
    if scheduler is None:
        before_start = dask.config.get("distributed.nanny.pre-spawn-environ") | _ONE_ARENA
        environment = _threads(max(1, usable_cores() // workers))
        with dask.config.set(_SELDOM | {"distributed.nanny.pre-spawn-environ": before_start}):
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address=None,
                scheduler_kwargs=_ANY_PORT,
                env=environment,
            )
    try:
        # Not the process's default: of two that end in turn the first would stay it, closed.
        client = Client(cluster or scheduler, timeout="30s", set_as_default=False)
    except ValueError as problem:
        raise CanvasError(
            f"{scheduler!r} is no address of a Dask scheduler ({problem}); expected one as tcp://host:8786"
        ) from problem
    except OSError as problem:
        raise CanvasError(f"no Dask scheduler answers at {scheduler}: {problem}") from problem
    try:
        # The job is a task's result, made again where the workers die that hold it; scattered it is lost.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "4 GiB"}):
            shared_job = client.submit(pickle.loads, pickle.dumps(job), pure=False)
            queue, running = iter(numbers), dict[Any, int]()

            def submit(tiles: Iterable[int]) -> None:
                for number in tiles:
                    running[client.submit(_tile, shared_job, number, pure=False, retries=_RETRIES)] = number

            submit(islice(queue, _AHEAD * max(workers, len(client.nthreads()))))
            while running:
                for future in _some_done(client, running):
                    number = running.pop(future)
                    try:
                        computed = _result_of(future)
                    except TimeoutError:  # its worker died with it
                        submit([number])
                        continue
                    future.release()
                    submit(islice(queue, 1))
                    yield number, computed
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def _tile(job: Tiled[Any], number: int) -> Any:
    """A tile's result, or what is wrong with it in a sentence, which trying again would not mend."""
    _keep_freed_memory()
    try:
        return job.tile(number)
    except CanvasError as problem:
        return problem


@cache
def _keep_freed_memory() -> None:
    """Set the allocator of this worker, once: Dask starts each with one that gives all back to the system.

    Variables of the environment come too late for a worker, or are those of Dask.
    """
    keep_freed_memory()


def _some_done(client: Any, running: Iterable[Any]) -> Iterable[Any]:
    """Futures that are done or failed, one at least; CanvasError where no worker is left."""
    from distributed import wait

    while True:
        try:
            with client.as_current():
                return wait(list(running), timeout=_WAIT_S, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            if not client.nthreads():
                raise CanvasError(
                    f"the Dask cluster has no worker, for {_WAIT_S} s none; start some and run the same "
                    "command again: it resumes"
                ) from None


def _result_of(future: Any) -> Any:
    """Result of a tile; TimeoutError where it was lost, CanvasError for what ends the work."""
    from distributed import KilledWorker

    if future.status == "cancelled":
        raise CanvasError("the Dask cluster was closed; start it and run the same command again: it resumes")
    if future.status == "lost":  # it was done, and the worker that held it has died since
        raise TimeoutError
    try:
        computed = future.result(timeout=_RESULT_S)
    except KilledWorker as problem:
        raise CanvasError(
            f"a block ended its worker again and again ({problem}): most likely its memory did not suffice; "
            "give fewer workers or smaller tiles"
        ) from problem
    if isinstance(computed, CanvasError):
        raise computed
    return computed


def _threads(count: int) -> dict[str, str]:
    """Limit the threads of each worker on a machine."""
    return {name: str(count) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
