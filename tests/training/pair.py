"""Two ranks in one process: a thread each, their sums through shared memory instead of a network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from canvas_fm.training.run.distributed import Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class PairedRank(Ranks):
    """One of two ranks; it waits for the other wherever processes would."""

    barrier: threading.Barrier
    values: list[Tensor]

    def sum(self, value: Tensor) -> Tensor:
        self.values[self.rank] = value.detach().clone()
        self.barrier.wait(timeout=60)
        total = self.values[0] + self.values[1]
        self.barrier.wait(timeout=60)
        return value.copy_(total)

    def sum_all(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self.sum(tensor)


def two_ranks() -> list[PairedRank]:
    """Both ranks of a pair on the CPU."""
    barrier, values = threading.Barrier(2), [torch.empty(0)] * 2
    return [PairedRank(rank, 2, torch.device("cpu"), barrier, values) for rank in range(2)]


def together(works: Sequence[Callable[[], T]]) -> list[T]:
    """What each returns when all are done at the same time."""
    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(lambda work: work(), works))
