"""Overlapping tiles as one OME-Zarr."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.option_sets import takes
from canvas_fm.prepare.convert.convert import Conversion, convert_source
from canvas_fm.prepare.convert.slab_workers import Processes
from canvas_fm.prepare.convert_flags import DestripeOptions, FlatFieldOptions, StitchOptions
from canvas_fm.prepare.corrections.corrections import Correction
from canvas_fm.prepare.corrections.report import report_corrections
from canvas_fm.prepare.sources.source import Source
from canvas_fm.prepare.stitch.corrections import NONE, CorrectedPlanes, correct_tiles
from canvas_fm.prepare.stitch.fuse import FusedTiles
from canvas_fm.prepare.stitch.offsets import Pair, Solution, measure_pair, overlapping, solve, unplaced
from canvas_fm.prepare.stitch.report import report_stitching
from canvas_fm.prepare.stitch.tiles import Tile, find_tiles
from canvas_fm.prepare.workers.cores import usable_cores
from canvas_fm.progress import bar

_REGISTERED_BYTES = 350e6  # that registering one overlap holds


@dataclass(frozen=True)
class Stitching:
    """Summary of a stitching: what was written, and how the tiles were placed.

    `untrusted` are overlaps that tell nothing or contradict the rest, `unplaced` the tiles that only such
    overlaps hold: they lie where the microscope says.
    """

    conversion: Conversion
    positions_zyx: dict[str, Zyx]
    overlaps: int
    untrusted: tuple[str, ...]
    unplaced: tuple[str, ...]
    largest_shift_zyx: tuple[float, float, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"conversion": self.conversion.as_dict()}


@takes(StitchOptions)
def stitch(
    source: str | Path,
    out: str | Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Stitching:
    """Place overlapping tiles and write them as one OME-Zarr; the same call again resumes.

    `source` is a folder `X/X_Y/Z.tiff` as SmartSPIM writes it, or with `positions` any folder of tiles. Each
    overlapping pair is registered by phase correlation, all positions together by least squares, rounded to
    whole voxels: no voxel is interpolated. Leaves `OUT.stitch.json`, `.png` and `.positions.csv`, the table
    that places another channel with `positions` and `keep_positions`. With `flat_field` (or `flat`) and
    `destripe` shading and stripes are removed from the planes of each tile, before they are blended; the
    shading is estimated from planes of all tiles. Tiles are registered on threads of this process and blended
    by `workers` processes, or those of a Dask `scheduler`, as in `convert`: the bytes are the same for any
    number. Raises CanvasError, naming tiles that overlap with no other.
    """
    path, out, opts = Path(source), Path(out), StitchOptions.of(**options)
    processes = Processes(workers, scheduler)
    tiles = find_tiles(path, opts)
    pairs = overlapping(tiles)
    solution = Solution(np.zeros((len(tiles), 3)), [], [])
    if not opts.keep_positions:
        with (
            bar(f"register {path.name}", len(pairs), unit="overlaps", show=progress) as advance,
            ThreadPoolExecutor(_registering(opts)) as pool,
        ):

            def measured(pair: tuple[int, int]) -> Pair:
                offset = measure_pair(tiles, *pair, opts.max_shift)
                advance()
                return offset

            solution = solve(len(tiles), list(pool.map(measured, pairs)), opts.min_correlation)
    placed = [
        _moved(tile.position_zyx, shift) for tile, shift in zip(tiles, solution.shifts_zyx, strict=True)
    ]
    stack, corrected = correct_tiles(path, tiles, opts)
    if len(opts.marker) > 1:
        raise CanvasError(f"--marker names {len(opts.marker)} markers; one channel is stitched at a time")
    opened = _fused(path, tiles, placed, opts, corrected)
    inputs = {"positions_zyx": [list(place) for place in placed]} | _corrections(opts)
    plain = opts.model_copy(update=NONE)  # what is done to tiles is not done to the whole again
    conversion = convert_source(opened, out, plain, processes=processes, progress=progress, inputs=inputs)
    if corrected.correction.is_there:
        report_corrections(stack, [corrected.correction], out)
    loose = [] if opts.keep_positions else unplaced(len(tiles), solution.used)
    stitching = Stitching(
        conversion,
        {tile.name: place for tile, place in zip(tiles, placed, strict=True)},
        len(pairs),
        tuple(_named(tiles, pair) for pair in solution.dropped),
        tuple(tiles[i].name for i in loose),
        tuple(float(n) for n in np.abs(solution.shifts_zyx).max(axis=0)),  # type: ignore[arg-type]
    )
    stem = out.with_suffix("")
    write_text_atomic(stem.with_name(stem.name + ".positions.csv"), _table(tiles, placed))
    report_stitching(stitching.as_dict(), tiles, solution, stem)
    return stitching


def _fused(
    path: Path, tiles: Sequence[Tile], placed: Sequence[Zyx], opts: StitchOptions, corrected: CorrectedPlanes
) -> Source:
    """The placed tiles as one channel, which a worker opens again with the same correction."""
    fused = FusedTiles(tiles, placed, opts.ramp, corrected)
    files = list(dict.fromkeys(file for tile in tiles for file in tile.volume.files))
    first = tiles[0].volume
    marker = opts.marker[0] if opts.marker else first.marker
    absolute = {"positions": opts.positions and opts.positions.absolute()}
    again = partial(
        _reopened, path.absolute(), placed, opts.model_copy(update=absolute), corrected.correction
    )
    return Source(path, [fused], ["channel 0"], [marker], first.voxel_um, files, again)


def _reopened(path: Path, placed: Sequence[Zyx], opts: StitchOptions, correction: Correction) -> Source:
    tiles = find_tiles(path, opts)
    corrected = CorrectedPlanes(correction, tiles[0].volume.shape_zyx[1:], opts.memory_gb)
    return _fused(path, tiles, placed, opts, corrected)


def _registering(options: StitchOptions) -> int:
    """Overlaps that are registered at once: every core, as far as their crops fit the memory."""
    return max(1, min(options.threads or usable_cores(), int(options.memory_gb * 1e9 / _REGISTERED_BYTES)))


def _corrections(options: StitchOptions) -> dict[str, Any]:
    """Options of the correction of tiles, where there is one."""
    fields = [*DestripeOptions.model_fields, *FlatFieldOptions.model_fields, "destripe", "ramp"]
    chosen = options.model_dump(mode="json", include=set(fields))
    return {"of tiles": chosen} if any(chosen[name] for name in NONE) else {}


def _moved(position: Zyx, shift: np.ndarray) -> Zyx:
    z, y, x = (int(p + np.rint(s)) for p, s in zip(position, shift, strict=True))
    return z, y, x


def _named(tiles: Sequence[Tile], pair: Pair) -> str:
    return f"{tiles[pair.first].name} and {tiles[pair.second].name} (correlation {pair.correlation:.2f})"


def _table(tiles: Sequence[Tile], placed: Sequence[Zyx]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["tile", "z", "y", "x"])
    for tile, place in zip(tiles, placed, strict=True):
        writer.writerow([_below(tile), *place])
    return text.getvalue()


def _below(tile: Tile) -> str:
    """A tile by its path below SRC: `X/X_Y` for those of SmartSPIM."""
    path = tile.volume.path
    return f"{path.parent.name}/{path.name}" if path.name == tile.name and "/" not in tile.name else tile.name
