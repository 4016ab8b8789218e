"""The slabs of a conversion, written here or by workers of a cluster, and marked as they are done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canvas_fm.errors import CanvasError
from canvas_fm.files.checksum import Algorithm, fastest_algorithm
from canvas_fm.prepare.convert.layout import Layout, has_arrays, make_store
from canvas_fm.prepare.convert.slab_progress import SlabResult, SlabWork
from canvas_fm.prepare.convert.window_sample import WindowSample
from canvas_fm.prepare.convert.write_slabs import Slabs
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.corrections.corrections import Correction
from canvas_fm.prepare.sources.source import Source
from canvas_fm.prepare.workers.cores import usable_cores
from canvas_fm.prepare.workers.dask_workers import map_tiles
from canvas_fm.progress import bar


@dataclass(frozen=True)
class Processes:
    """Writers of slabs: threads of this process, `workers` processes, or those of a Dask `scheduler`."""

    workers: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise CanvasError(f"workers is {self.workers}; give at least 1")

    @property
    def several(self) -> bool:
        return self.workers != 1 or self.scheduler is not None


THREADS = Processes()
"""The threads of this process alone."""


@dataclass(frozen=True)
class SlabPlan:
    """Everything that determines the voxels of the slabs."""

    source: Source
    layout: Layout
    corrections: Sequence[Correction]
    options: ConvertOptions

    def open(self) -> Slabs:
        """The slabs, with the threads and memory of the options."""
        return Slabs(
            self.source,
            self.layout,
            self.corrections,
            labels=self.options.labels,
            checksums=self._algorithm(),
            threads=self.options.threads or usable_cores(),
            memory_gb=self.options.memory_gb,
        )

    def _algorithm(self) -> Algorithm | None:
        chosen = self.options.checksums
        return None if chosen == "none" else chosen or fastest_algorithm()


@dataclass
class SlabJob:
    """Writes slabs by number, wherever it is sent; picklable, `reopen` opens the source where it works."""

    reopen: Callable[[], Source]
    identity: str
    layout: Layout
    corrections: Sequence[Correction]
    options: ConvertOptions
    root: Path
    _open: Slabs | None = field(init=False, default=None)
    _lock: Any = field(init=False, default_factory=threading.Lock)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_lock": None}  # threads and memory stay here

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"_lock": threading.Lock()}

    def tile(self, number: int) -> SlabResult:
        """Write a slab to the disk; one at a time, on all threads."""
        with self._lock:
            if self._open is None:
                self._open = SlabPlan(self._source(), self.layout, self.corrections, self.options).open()
            return self._open.write(self.root, number)

    def _source(self) -> Source:
        source = self.reopen()
        if source.identity() != self.identity:
            raise CanvasError(
                f"{source.path} has other files, sizes or times where a worker sees it; all workers need the "
                "same folder at the same path"
            )
        return source


def write_slabs(
    plan: SlabPlan,
    work: SlabWork,
    processes: Processes,
    sample: WindowSample,
    *,
    progress: bool | None = None,
) -> SlabResult:
    """Write what is not done yet; what all slabs left together, the same for any number of workers.

    `sample` counts the slabs that this process writes.
    """
    layout = plan.layout
    if not has_arrays(work.store, layout):
        make_store(work.store, layout)
    total, remaining = SlabResult(), []
    planes = plan.source.shape_zyx[0] * layout.channels
    with (
        plan.open() as slabs,
        bar(f"convert {plan.source.path.name}", planes, unit="planes", show=progress) as advance,
    ):
        for number in range(layout.slabs):
            done = work.done(_name(layout, number))
            if done is None:
                remaining.append(number)
            else:
                total.add(done)
                advance(layout.slab_of(number)[2])
        written: Iterator[tuple[int, SlabResult]] = (
            _by_workers(plan, work, processes, remaining)
            if processes.several
            else slabs.run(work, remaining, sample)
        )
        for number, done in written:
            work.keep(_name(layout, number), done)
            total.add(done)
            advance(layout.slab_of(number)[2])
        slabs.coarse(work, total)
        slabs.add_checksums(total)
    return total


def _by_workers(
    plan: SlabPlan, work: SlabWork, processes: Processes, remaining: Sequence[int]
) -> Iterator[tuple[int, SlabResult]]:
    threads = plan.options.threads
    if threads is None and processes.scheduler is None:
        threads = max(1, usable_cores() // processes.workers)
    assert plan.source.reopen is not None
    job = SlabJob(
        plan.source.reopen,
        plan.source.identity(),
        plan.layout,
        plan.corrections,
        plan.options.model_copy(update={"threads": threads}),
        work.store.absolute(),
    )
    return map_tiles(job, remaining, workers=processes.workers, scheduler=processes.scheduler)


def _name(layout: Layout, number: int) -> str:
    """The part that marks a slab as done."""
    channel, start, _ = layout.slab_of(number)
    return f"c{channel}-z{start:06d}"
