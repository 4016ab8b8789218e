"""How many processes the suite is run in."""

from __future__ import annotations

import os

import pytest

from tests.conftest import pytest_xdist_auto_num_workers


@pytest.mark.parametrize(
    ("threads", "workers"), [("1", 9), ("2", 5), ("8", 2), ("16", 2), ("4,2", 3), ("", 9)]
)
def test_processes_and_their_threads_fill_the_cores_once(threads, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert pytest_xdist_auto_num_workers() == workers
