"""Data-parallel training under torchrun: ranks and reductions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from canvas_fm.errors import CanvasError
from canvas_fm.models.device import pick_device


@dataclass(frozen=True)
class Ranks:
    """This process among `size`; a single process without torchrun."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and reports."""
        return self.rank == 0

    def local_rows(self, batch: int) -> slice:
        """This rank's rows of an optimizer batch."""
        if batch % self.size:
            raise CanvasError(
                f"batch {batch} does not divide among {self.size} processes; change training.batch"
            )
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum(self, value: Tensor) -> Tensor:
        """All-reduce sum, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def sum_all(self, tensors: Sequence[Tensor]) -> None:
        """All-reduce sum of many tensors in one message, in place.

        DistributedDataParallel would average where the loss here is a sum, and its buckets only hide the cost
        of much larger models: these 12.6 M parameters are one message of 50 MB.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, summed in zip(tensors, parts, strict=True):
            tensor.copy_(summed.view_as(tensor))

    def wait(self) -> None:
        """Barrier."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join(device: str | torch.device) -> Iterator[Ranks]:
    """Join torchrun's process group; returns ranks and device."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(0, 1, pick_device(device))
        return
    chosen = pick_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    # The others wait while the main process reads or evaluates.
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(hours=6))
    try:
        yield Ranks(dist.get_rank(), size, chosen)
    finally:
        dist.destroy_process_group()
