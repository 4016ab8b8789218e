"""How the benchmarks measure: warm-up, rounds that take turns, the median, and a ratio in one run."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians(
    work: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each piece of work; they take turns, so that a noisy machine is noisy to all.

    With `time.process_time` as the clock, seconds of one core for work on one thread, whoever else runs.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(warm_up + rounds):
        for name, piece in work.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = clock()
            piece()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm_up:
                taken[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def show(title: str, rows: list[tuple[str, str, str]]) -> None:
    """Print a small table: what, measured, beside what it is held against."""
    print(f"\n{title}")
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def machine() -> str:
    """The machine in a line: processor, threads, accelerator."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {capability}, {threads} threads, {device}, torch {torch.__version__}"
