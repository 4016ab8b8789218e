"""Tiles of a job computed in this process or by Dask workers, with the same results."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.models.allocator import ENVIRONMENT
from canvas_fm.prepare.cores import usable_cores

R = TypeVar("R", covariant=True)
_AHEAD = 4  # tiles that wait at each worker


@runtime_checkable
class Tiled(Protocol[R]):
    """Protocol: a picklable job that is computed tile by tile."""

    def tile(self, number: int) -> R: ...


def map_tiles(
    job: Tiled[R], numbers: Iterable[int], *, workers: int = 1, scheduler: str | None = None
) -> Iterator[tuple[int, R]]:
    """Yield (number, result) of each tile as it completes; in order without workers.

    More than one worker, or a `scheduler` (tcp://host:8786), need Dask; volumes and models are then opened by
    the workers at the same paths. Memory is that of a few tiles a worker.
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
        from distributed import Client, LocalCluster, as_completed
    except ImportError as problem:
        raise MissingExtra("dask.distributed", "dask", "more than one worker") from problem
    cluster = None
    if scheduler is None:
        threads = max(1, usable_cores() // workers)
        environment = _threads(threads) | ENVIRONMENT
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, env=environment
        )
    try:
        client = Client(cluster or scheduler, timeout="30s")
    except ValueError as problem:
        raise CanvasError(
            f"{scheduler!r} is no address of a Dask scheduler ({problem}); expected one as tcp://host:8786"
        ) from problem
    except OSError as problem:
        raise CanvasError(f"no Dask scheduler answers at {scheduler}: {problem}") from problem
    try:
        there = client.scatter(job, broadcast=True)
        queue = iter(numbers)
        running = as_completed(with_results=True, raise_errors=True)
        for number in islice(queue, _AHEAD * max(workers, len(client.nthreads()))):
            running.add(client.submit(_tile, there, number, pure=False))
        for future, result in running:
            future.release()
            for number in queue:
                running.add(client.submit(_tile, there, number, pure=False))
                break
            yield result
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def _tile(job: Tiled[Any], number: int) -> tuple[int, Any]:
    return number, job.tile(number)


def _threads(count: int) -> dict[str, str]:
    """Limit the threads of each worker on a machine."""
    return {name: str(count) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
