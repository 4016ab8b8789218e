"""Tiles computed by Dask: what fails is tried again, a sentence is not, what is lost is computed again."""

from __future__ import annotations

import collections
import contextlib
import resource
import socket
import sys
import types
import warnings

import pytest

from canvas_fm.errors import CanvasError
from canvas_fm.prepare.workers import dask_workers
from canvas_fm.prepare.workers.dask_workers import map_tiles
from tests.support.dask_cluster import cluster_of_threads

pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")
SIZE = 1 << 27
CALLS: collections.Counter[int] = collections.Counter()


class Squares:
    """A job whose tile 3 fails once by chance, and whose tile 5 is wrong in itself."""

    def tile(self, number: int) -> int:
        CALLS[number] += 1
        if number == 3 and CALLS[number] == 1:
            raise OSError("the network was away")
        if number == 5:
            raise CanvasError("tile 5 is damaged")
        return number**2


@pytest.fixture(scope="module")
def scheduler():
    with cluster_of_threads(2) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(autouse=True)
def _no_calls():
    CALLS.clear()


def test_a_tile_that_fails_is_tried_again(scheduler):
    numbers = [n for n in range(20) if n != 5]
    assert dict(map_tiles(Squares(), numbers, scheduler=scheduler)) == {n: n**2 for n in numbers}
    assert CALLS[3] == 2


def test_what_is_wrong_in_itself_ends_the_work_at_once(scheduler):
    with pytest.raises(CanvasError, match="tile 5 is damaged"):
        dict(map_tiles(Squares(), range(4, 8), scheduler=scheduler))
    assert CALLS[5] == 1


def test_a_result_that_is_lost_on_its_way_is_computed_again(scheduler, monkeypatch):
    real, lost = dask_workers._result_of, []

    def result_of(future):
        if not lost:
            lost.append(future)
            raise TimeoutError
        return real(future)

    monkeypatch.setattr(dask_workers, "_result_of", result_of)
    rows = list(map_tiles(Squares(), [0, 1, 2], scheduler=scheduler))
    assert sorted(rows) == [(0, 0), (1, 1), (2, 4)]
    assert sum(CALLS.values()) == 4


def test_a_result_whose_worker_died_after_it_was_done_is_a_lost_one():
    """What a future says then; the scheduler's own mark would break a worker of this process."""
    with pytest.raises(TimeoutError):
        dask_workers._result_of(types.SimpleNamespace(status="lost"))
    with pytest.raises(CanvasError, match="the Dask cluster was closed"):
        dask_workers._result_of(types.SimpleNamespace(status="cancelled"))


def test_work_that_ends_in_turn_leaves_dasks_own_scheduler(scheduler):
    """Two at once, the first one closed first: later arrays are computed without any cluster."""
    first, second = (map_tiles(Squares(), [0, 1, 2], scheduler=scheduler) for _ in range(2))
    assert next(first) in {(0, 0), (1, 1), (2, 4)}
    assert next(second) in {(0, 0), (1, 1), (2, 4)}
    first.close()
    second.close()
    assert da.ones(3).sum().compute() == 3


class Faults:
    """A job whose tile says how many pages were mapped anew for an array as large as one freed before."""

    def tile(self, number: int) -> int:
        counts = []
        for _ in range(10):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            b"1" * SIZE  # numpy would ask for huge pages
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return min(counts[1:])  # a system may reclaim idle pages between two of them


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc's allocator")
def test_workers_of_this_machine_use_freed_memory_again():
    """Tiles are computed in a thread, which by default has an arena of small heaps."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # in use already
            stack.enter_context(socket.create_server(("127.0.0.1", 8787)))  # Dask's usual port
        stack.enter_context(warnings.catch_warnings(action="error"))
        ((_, faults),) = map_tiles(Faults(), [0], workers=2)
    assert faults < SIZE / resource.getpagesize() / 10
