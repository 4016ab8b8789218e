"""Freed arrays are used again without page faults, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import resource, sys, torch
from canvas_fm.models.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else True
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, min(faults() for _ in range(10)))  # a system may reclaim idle pages between two of them
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    if kept != "True":
        pytest.skip("this system's allocator is not glibc's")
    return int(count)


@pytest.mark.slow
def test_freed_memory_is_used_again() -> None:
    assert faults("keep") < faults("default") / 10
