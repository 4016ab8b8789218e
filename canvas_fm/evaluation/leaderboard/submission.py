"""Leaderboard submissions: a card and one file of cells a region, with validation."""

from __future__ import annotations

import csv
import datetime
import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from canvas_fm.data.points.boxes import as_boxes, inside_boxes, read_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError, counted
from canvas_fm.evaluation.detection.plausibility_checks import scores_of
from canvas_fm.evaluation.tables.manifest import VoxelUm
from canvas_fm.files.checksum import sha256
from canvas_fm.files.strict_yaml import StrictModel, check_settings, read_settings

BENCHMARK, CARD, CELLS = "benchmark.yaml", "card.yaml", "cells"
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_BYTES = 500_000_000
_SHOWN = 20  # faults of rows that are named one by one; of more the number is said

Name = Annotated[str, Field(min_length=1, max_length=80)]


class BoardRegion(StrictModel):
    """A scored part of a brain, without its truth."""

    name: str
    marker: str
    voxel_um: VoxelUm | None = None
    shape_zyx: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=3, max_length=3)] | None = None
    within: str | list[list[int]] | None = None
    tolerance_um: float | None = Field(None, gt=0)
    tolerance_voxels: float | None = Field(None, gt=0)

    @field_validator("name")
    @classmethod
    def _is_a_file_name(cls, name: str) -> str:
        if not _SLUG.fullmatch(name):
            raise ValueError(f"{name!r} is no region's name; expected letters, digits, '.', '_' and '-'")
        return name


class Benchmark(StrictModel):
    """Definition of a leaderboard (benchmark.yaml, public): regions, sizes, tolerances; no truth."""

    title: str = "Leaderboard"
    description: str = ""
    regions: Annotated[list[BoardRegion], Field(min_length=1)]
    voxel_um: VoxelUm | None = None
    tolerance_um: float | None = Field(None, gt=0)
    tolerance_voxels: float | None = Field(None, gt=0)
    max_cells: int = Field(2_000_000, gt=0)

    @model_validator(mode="after")
    def _names_are_one(self) -> Benchmark:
        names = [region.name for region in self.regions]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two regions are called {twice[0]!r}")
        return self

    @property
    def markers(self) -> list[str]:
        """Markers in the order of their first regions."""
        return list(dict.fromkeys(region.marker for region in self.regions))


class Card(StrictModel):
    """Metadata of a submission (card.yaml); `markers` it covers, all by default."""

    name: Name
    authors: Annotated[list[Name], Field(min_length=1, max_length=50)]
    method: Annotated[str, Field(min_length=1, max_length=2000)]
    date: str
    url: Annotated[str, Field(max_length=300, pattern=r"^https?://[^\s\"'<>]+$")] | None = None
    trained_on: list[Name] | None = None
    markers: Annotated[list[str], Field(min_length=1)] | None = None
    parameters: int | None = Field(None, gt=0)

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, date: str) -> str:
        try:
            datetime.date.fromisoformat(date)
        except ValueError as problem:
            raise ValueError(f"{date!r} is no date; expected year-month-day, as 2026-03-31") from problem
        return date


@dataclass(frozen=True)
class Submission:
    """A valid submission: its card and the cells file of each region it covers."""

    folder: Path
    card: Card
    cells: dict[str, Path]

    @property
    def files(self) -> dict[str, str]:
        """sha256 of the card and each cells file, by path within the submission."""
        paths = [self.folder / CARD, *self.cells.values()]
        return {path.relative_to(self.folder).as_posix(): sha256(path) for path in paths}


@dataclass(frozen=True)
class Entry:
    """A submission with its stored scores; `stale` says why they are outdated, else None."""

    name: str
    card: Card
    scores: dict[str, Any]
    stale: str | None


def read_benchmark(board: str | Path) -> Benchmark:
    """Read the benchmark of a board's folder."""
    return read_settings(Path(board) / BENCHMARK, Benchmark)


def regions_boxes(board: Path, region: BoardRegion) -> np.ndarray | None:
    """Boxes in which a region is scored; a path is relative to the board."""
    if region.within is None:
        return None
    if isinstance(region.within, str):
        return read_boxes(board / region.within)
    return as_boxes(region.within, source=f"region {region.name}")


def check_submission(folder: str | Path, board: str | Path) -> tuple[Submission | None, list[str]]:
    """The submission in a folder, or None and one message for each error."""
    folder, board = Path(folder), Path(board)
    benchmark = read_benchmark(board)
    if not folder.is_dir():
        return None, [f"{folder} is no folder; expected one with {CARD} and {CELLS}/REGION.csv"]
    links = sorted(path for path in folder.rglob("*") if path.is_symlink())
    if links or folder.is_symlink():
        return None, [f"{path.relative_to(folder)} is a link; give the file itself" for path in links] or [
            f"{folder} is a link; give the folder itself"
        ]
    card, faults = check_settings(folder / CARD, Card, trusted=False)
    faults = [f"{CARD}: {fault}" for fault in faults]
    if card is not None:
        faults += [f"{CARD}: {fault}" for fault in _card_faults(card, benchmark)]
    regions = [
        r for r in benchmark.regions if card is None or r.marker in (card.markers or benchmark.markers)
    ]
    cells, more = _find_cells(folder, benchmark, regions)
    faults += more
    for region in regions:
        if region.name in cells:
            where = cells[region.name].relative_to(folder)
            faults += [
                f"{where}: {fault}" for fault in _cell_faults(cells[region.name], region, board, benchmark)
            ]
    if faults or card is None:
        return None, faults
    return Submission(folder, card, cells), []


def _card_faults(card: Card, benchmark: Benchmark) -> Iterator[str]:
    for name, value in card.model_dump().items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and not text.replace("\n", "").isprintable() for text in texts):
            yield f"{name} holds characters that cannot be shown"
    for marker in card.markers or []:
        if marker not in benchmark.markers:
            yield f"the marker {marker!r} is not in the benchmark; it has {', '.join(benchmark.markers)}"


def _find_cells(
    folder: Path, benchmark: Benchmark, regions: list[BoardRegion]
) -> tuple[dict[str, Path], list[str]]:
    """File of each region, and errors for missing, duplicate or unknown ones."""
    known = [region.name for region in benchmark.regions]
    cells: dict[str, Path] = {}
    faults = []
    present = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in present:
        where = path.relative_to(folder)
        if where.as_posix() == CARD or (path.suffix == ".json" and path.with_suffix("") in present):
            continue  # what `detect` leaves beside a table is none
        if where.parent.as_posix() != CELLS:
            faults.append(f"{where} is not expected; a submission is {CARD} and {CELLS}/REGION.csv")
        elif path.stem not in known:
            matches = difflib.get_close_matches(path.stem, known, n=1)
            hint = f"did you mean {matches[0]}?" if matches else f"regions: {', '.join(known)}"
            faults.append(f"{where}: no region is called {path.stem!r}; {hint}")
        elif path.stem not in [region.name for region in regions]:
            faults.append(
                f"{where}: the card's markers leave this region out; remove the file or name its marker"
            )
        elif path.stem in cells:
            faults.append(f"{where}: {cells[path.stem].name} is there too; expected one file a region")
        else:
            cells[path.stem] = path
    for region in regions:
        if region.name not in cells:
            faults.append(
                f"{CELLS}/{region.name}.csv is missing (a file with only z,y,x says that no cell was found)"
            )
    return cells, faults


def _cell_faults(path: Path, region: BoardRegion, board: Path, benchmark: Benchmark) -> Iterator[str]:
    if path.stat().st_size > _MOST_BYTES:
        yield f"{path.stat().st_size / 1e6:,.0f} MB; at most {_MOST_BYTES / 1e6:,.0f} MB are taken"
        return
    try:
        points = Points.read(path)
        scores_of(points, None, needed=False)
    except CanvasError as problem:
        named = list(_row_faults(path)) if path.suffix.lower() == ".csv" else []
        yield from named or [str(problem).removeprefix(f"{path}").lstrip(": ")]
        return
    if len(points) > benchmark.max_cells:
        yield f"{counted(len(points), 'cell')}; at most {benchmark.max_cells:,} are taken"
    if repeated := len(points) - len(np.unique(points.zyx, axis=0)):
        yield f"{counted(repeated, 'row', 'repeat')} the position of another row"
    if region.shape_zyx is not None and (outside := ~points.inside(region.shape_zyx)).any():
        swapped = Points(points.zyx[:, ::-1]).inside(region.shape_zyx).all()
        hint = "; as x, y, z all would lie inside: expected z, y, x" if swapped else ""
        yield (
            f"{outside.sum():,} of {counted(len(points), 'cell')} lie outside the volume "
            f"{tuple(region.shape_zyx)}, "
            f"first in row {int(np.argmax(outside)) + 1}{hint}"
        )
    boxes = regions_boxes(board, region)
    if boxes is not None and len(points) and not inside_boxes(points.zyx, boxes).any():
        yield "no cell lies in the boxes that are scored"


def _row_faults(path: Path) -> Iterator[str]:
    """One message for each unreadable row of a CSV; empty if the header is the problem."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        return
    delimiter = max(",;\t", key=lines[0].count)
    header = [name.strip().lower() for name in next(csv.reader([lines[0]], delimiter=delimiter))]
    if not {"z", "y", "x"} <= set(header):
        return
    checked = [name for name in ("z", "y", "x", "score", "p_cell") if name in header]
    faults = 0
    for number, row in enumerate(csv.reader(lines[1:], delimiter=delimiter), start=1):
        if len(row) != len(header):
            row_faults = [f"{counted(len(row), 'value')}; the column row names {len(header)}"]
        else:
            texts = {name: row[header.index(name)].strip() for name in checked}
            row_faults = [
                f"{name} is {text!r}, expected a finite number" for name, text in texts.items() if _no(text)
            ]
        for fault in row_faults:
            faults += 1
            if faults <= _SHOWN:
                yield f"row {number}: {fault}"
    if faults > _SHOWN:
        yield f"{counted(faults - _SHOWN, 'more row')} that cannot be read"


def _no(text: str) -> bool:
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return True
