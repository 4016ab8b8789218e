"""Any image as a clean OME-Zarr: sharded, with pyramid, window, checksums of its own and of its sources."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.store.checked_store import CheckedStore
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import takes
from canvas_fm.prepare.convert.finish import attributes, finish, is_done, verify_sources
from canvas_fm.prepare.convert.layout import Layout, plan
from canvas_fm.prepare.convert.slab_progress import SlabWork, settings_sha256
from canvas_fm.prepare.convert.slab_workers import THREADS, Processes, SlabPlan, write_slabs
from canvas_fm.prepare.convert.window_sample import WindowSample
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.corrections.report import report_corrections
from canvas_fm.prepare.corrections.sample_planes import corrections_of
from canvas_fm.prepare.sources.source import Source, open_source
from canvas_fm.progress import bar

_NOT_DECIDING = {"threads", "memory_gb", "verify", "checksums"}


@dataclass(frozen=True)
class Conversion:
    """Summary of a conversion: sizes in bytes, planes over all channels, damage that was read as zeros."""

    path: Path
    channels: tuple[str, ...]
    shape_zyx: tuple[int, int, int]
    dtype: str
    voxel_um: tuple[float, float, float]
    levels: int
    planes: int
    bytes_in: int
    bytes_out: int
    seconds: float
    bad_chunks: tuple[str, ...]
    verified: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"path": str(self.path)}


@takes(ConvertOptions)
def convert(
    source: str | Path,
    out: str | Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Conversion:
    """Write an image as OME-Zarr; resumes when called again after a kill.

    `source` is a folder of TIFF planes, a TIFF stack (BigTIFF, OME-TIFF, ImageJ), HDF5, Imaris, Zarr, or with
    the extra `vendors` CZI, ND2 or LIF. All channels become one store (axes c, z, y, x), a lone one a volume
    (z, y, x). The store takes its name when it is whole; until then the work lies in OUT.unfinished. Memory
    stays below `memory_gb` whatever the size. `workers` processes of this machine, or a Dask `scheduler` such
    as tcp://host:8786 whose workers see source and OUT at the same paths, write the same bytes. An OUT of
    the same source and options is taken as it is, any other is refused. Raises CanvasError with what to do,
    DamagedStore naming the file, StorageFull.
    """
    out, opts = Path(out), ConvertOptions.of(**options)
    _check_name(out)
    processes = Processes(workers, scheduler)
    opened = open_source(source, opts)
    try:
        return convert_source(opened, out, opts, processes=processes, progress=progress)
    finally:
        opened.close()


def convert_source(
    opened: Source,
    out: Path,
    opts: ConvertOptions,
    *,
    processes: Processes = THREADS,
    progress: bool | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Conversion:
    """`convert` of channels that are open; `inputs` are what else decides the result."""
    began = time.perf_counter()
    _check_name(out)
    layout = plan(opened, opts)
    inputs = _inputs(opened, layout, opts) | dict(inputs or {})
    digest = settings_sha256(inputs)
    planes = opened.shape_zyx[0] * layout.channels
    if not is_done(out, digest):
        corrections = corrections_of(opened, opts)
        with SlabWork(out, inputs) as work:
            slabs = SlabPlan(opened, layout, corrections, opts)
            sample = WindowSample(layout, labels=opts.labels)
            done = write_slabs(slabs, work, processes, sample, progress=progress)
            if any(correction.is_there for correction in corrections):
                report_corrections(opened, corrections, out)
            finish(work, opened, layout, done, sample, digest, opts)
    if opts.verify:
        verify(out, SlabPlan(opened, layout, corrections_of(opened, opts), opts), progress=progress)
    written = attributes(out) or {}
    bytes_in = planes * opened.shape_zyx[1] * opened.shape_zyx[2] * opened.dtype.itemsize
    bytes_out = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Conversion(
        out, tuple(opened.names), opened.shape_zyx, str(opened.dtype), opened.voxel_um, len(layout.levels),
        planes, bytes_in, bytes_out, time.perf_counter() - began, tuple(written.get("bad_chunks", ())),
        opts.verify,
    )  # fmt: skip


@takes(ConvertOptions)
def destripe(
    source: str | Path, out: str | Path, *, progress: bool | None = None, **options: Any
) -> Conversion:
    """Write an image as OME-Zarr without the light sheet's stripes: `convert` with `destripe`."""
    return convert(source, out, progress=progress, **(options | {"destripe": True}))


def verify(out: Path, slab_plan: SlabPlan, *, progress: bool | None = None) -> None:
    """Compare every file, of the sources too, with its checksum and every voxel with the source's.

    Raises DamagedStore or CanvasError.
    """
    source, layout = slab_plan.source, slab_plan.layout
    CheckedStore(out).verify_all()
    verify_sources(out, source)
    with (
        slab_plan.open() as slabs,
        bar("verify", source.shape_zyx[0] * layout.channels, unit="planes", show=progress) as advance,
    ):
        for channel in range(layout.channels):
            volume = Volume.open(out, c=channel if layout.has_c else None)
            for start in layout.starts(0):
                expected = slabs.read(channel, start, min(start + layout.slab, source.shape_zyx[0]))
                read_back = volume.read((start, 0, 0), expected.shape)
                differ = np.flatnonzero((read_back != expected).any(axis=(1, 2)))
                if len(differ):
                    raise CanvasError(
                        f"{out}: plane {start + int(differ[0])} of channel {channel} is not that of "
                        f"{source.path}; delete {out} and convert again"
                    )
                advance(len(expected))


def _check_name(out: Path) -> None:
    if not out.name.lower().endswith(".zarr"):
        raise CanvasError(f"{out}: volumes are written as .zarr; give {out.with_suffix('.zarr')}")


def _inputs(source: Source, layout: Layout, options: ConvertOptions) -> dict[str, Any]:
    """All that decides the result; resuming with others is refused."""
    chosen = json.loads(options.model_dump_json(exclude=_NOT_DECIDING))
    return {
        "source": source.path.name,
        "source files": source.identity(),
        "voxel_um": list(source.voxel_um),
        **layout.identity(),
        **{name: value for name, value in chosen.items() if name not in ("voxel_um", "ome", "levels")},
    }
