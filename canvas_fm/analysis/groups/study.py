"""A study: brains, their groups, and their counts per region."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from canvas_fm.data.points.sidecar import warn_if_changed
from canvas_fm.data.points.tables import text_rows
from canvas_fm.errors import CanvasError, counted
from canvas_fm.heads.refine.counts.count_interval import ALL_CELLS, ALL_CELLS_IF_RECALL_HOLDS

_log = logging.getLogger(__name__)
_NEEDED = ("brain", "group", "regions")
_OF_REGIONS = ("id", "name", "count", "volume_mm3")


Repeat = Literal["hemisphere", "channel"]


@dataclass(frozen=True)
class Repeats:
    """Several measurements of each brain: its hemispheres or channels. NaN where a brain lacks one."""

    names: tuple[str, ...]
    count: Float64[np.ndarray, "b m r"]
    volume_mm3: Float64[np.ndarray, "b m r"]


@dataclass(frozen=True)
class GroupStudy:
    """Counts and volumes in mm³ of brains × regions; regions are those that every brain has."""

    brains: tuple[str, ...]
    groups: tuple[str, ...]
    ids: Int64[np.ndarray, " r"]
    names: tuple[str, ...]
    acronyms: tuple[str, ...]
    count: Float64[np.ndarray, "b r"]
    volume_mm3: Float64[np.ndarray, "b r"]
    repeats: Repeats | None = None

    def __post_init__(self) -> None:
        check_design(self.brains, self.groups)

    def of(self, group: str) -> np.ndarray:
        """Mask of a group's brains."""
        return np.array([name == group for name in self.groups])


def check_design(brains: Sequence[str], groups: Sequence[str]) -> None:
    """CanvasError where a brain has two rows, or there is one group, or a group of one brain."""
    if twice := [name for name, times in Counter(brains).items() if times > 1]:
        raise CanvasError(
            f"the brain {twice[0]} is in more than one row; a brain is one sample, however many cells, "
            "sections or files it has: put them into one file first"
        )
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise CanvasError(f"the study has one group, {groups[0]}; two or more are compared")
    if alone := [name for name, times in sizes.items() if times < 2]:
        raise CanvasError(
            f"the group {alone[0]} has one brain; how much brains differ is not known from one: "
            "expected two at the least, better four or more"
        )


def read_study(
    path: str | Path,
    *,
    channel: str | None = None,
    hemisphere: str = "both",
    without_children: bool = False,
    repeats: Repeat | None = None,
) -> GroupStudy:
    """A CSV with the columns brain, group and regions: the table that `canvas-fm regions` wrote of the brain.

    Or a table of several brains, as `canvas-fm count --regions` writes it: of that its own rows are read.
    Paths are relative to the file. `without_children` takes each region by itself. `repeats` also reads the
    measurements of each hemisphere or channel; the study's counts are then their sums.
    """
    path = Path(path)
    rows = read_rows(path, _NEEDED, "brain, group, regions")
    files = [RegionsFile(path.parent / row["regions"], row["brain"]) for row in rows]
    for table in dict.fromkeys(file.path for file in files):
        warn_if_changed(table)
    _own_tables(files)
    _same_count_of(files, channel)
    if repeats is not None:
        return _repeated(path, rows, files, repeats, channel, hemisphere, without_children)
    tables = [_regions(file, channel, hemisphere, without_children) for file in files]
    return _study(path, rows, tables)


@dataclass(frozen=True)
class RegionsFile:
    """The counts per region of one brain: a table of its own, or its rows in a table of several brains."""

    path: Path
    brain: str

    def rows(self) -> list[dict[str, str]]:
        """The brain's rows; CanvasError where a table of several brains has none of it."""
        rows = text_rows(self.path)
        if not rows or "brain" not in rows[0]:
            return rows
        if of_brain := [row for row in rows if row["brain"] == self.brain]:
            return of_brain
        brains = ", ".join(dict.fromkeys(row["brain"] for row in rows))
        raise CanvasError(
            f"{self.path} has no rows of the brain {self.brain}; found {brains}. Name the brain "
            "as its column `brain` does"
        )


def _own_tables(files: Sequence[RegionsFile]) -> None:
    """CanvasError where two brains have one table that does not say which rows are of which brain."""
    first: dict[Path, str] = {}
    for file in files:
        before = first.setdefault(file.path, file.brain)
        if before != file.brain and not any("brain" in row for row in text_rows(file.path)[:1]):
            raise CanvasError(
                f"{before} and {file.brain} have the same table, {file.path}, and it has no column brain; "
                "expected a table for each brain (canvas-fm regions), or one of all "
                "(canvas-fm count --regions)"
            )


Table = Mapping[int, tuple[str, str, float, float]]


def _study(path: Path, rows: list[dict[str, str]], tables: Sequence[Table]) -> GroupStudy:
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    if not shared:
        raise CanvasError(f"{path}: no region is in the tables of all brains; are they of one atlas?")
    if dropped := len(set.union(*(set(table) for table in tables))) - len(shared):
        shortest = rows[int(np.argmin([len(table) for table in tables]))]
        _log.warning(
            "%s not in the tables of all brains and left out; the shortest table is that of %s (%s)",
            f"{counted(dropped, 'region')} {'is' if dropped == 1 else 'are'}",
            shortest["brain"],
            shortest["regions"],
        )
    return GroupStudy(
        tuple(row["brain"] for row in rows),
        tuple(row["group"] for row in rows),
        np.array(shared, np.int64),
        tuple(tables[0][region][0] for region in shared),
        tuple(tables[0][region][1] for region in shared),
        np.array([[table[region][2] for region in shared] for table in tables], np.float64),
        np.array([[table[region][3] for region in shared] for table in tables], np.float64),
    )


def _repeated(
    path: Path,
    rows: list[dict[str, str]],
    files: Sequence[RegionsFile],
    repeats: Repeat,
    channel: str | None,
    hemisphere: str,
    without_children: bool,
) -> GroupStudy:
    """A study with the measurements of each hemisphere or channel; a brain may lack some of them."""
    if repeats == "hemisphere":
        names: Sequence[str] = ("left", "right")
    else:
        names = sorted({row.get("channel", "") for file in files for row in file.rows()})
    parts: list[list[Table]] = []
    for file in files:
        has = {(row.get("channel", ""), row.get("hemisphere", "both")) for row in file.rows()}
        of_brain: list[Table] = []
        for name in names:
            chosen, side = (channel, name) if repeats == "hemisphere" else (name, hemisphere)
            measured = any(side == half and chosen in (None, of) for of, half in has)
            of_brain.append(_regions(file, chosen, side, without_children) if measured else {})
        parts.append(of_brain)
    if len(names) < 2 or any(not any(of_brain) for of_brain in parts):
        raise CanvasError(
            f"{path}: the tables of regions hold no two measurements by {repeats}; a mixed model needs some "
            "brain with left and right (an atlas with hemispheres), or two channels"
        )
    study = _study(path, rows, [_sum(of_brain) for of_brain in parts])
    counts = np.array(
        [
            [[table[int(region)][2:] if int(region) in table else (np.nan, np.nan) for region in study.ids]
             for table in of_brain]
            for of_brain in parts
        ]
    )  # fmt: skip
    return replace(study, repeats=Repeats(tuple(names), counts[..., 0], counts[..., 1]))


def _sum(tables: Sequence[Table]) -> Table:
    """Counts and volumes of all measurements of a brain."""
    whole: dict[int, tuple[str, str, float, float]] = {}
    for table in tables:
        for region, (name, acronym, count, volume) in table.items():
            before = whole.get(region, (name, acronym, 0.0, 0.0))
            whole[region] = (name, acronym, before[2] + count, before[3] + volume)
    return whole


def read_rows(path: Path, needed: Sequence[str], expected: str) -> list[dict[str, str]]:
    """Rows of a study's CSV, each with all `needed` columns filled in."""
    rows = text_rows(path)
    if missing := [name for name in needed if not rows or name not in rows[0]]:
        columns = ", ".join(rows[0]) if rows else "no rows"
        raise CanvasError(
            f"{path} has no column {missing[0]}; found {columns}. expected a row a brain: {expected}"
        )
    if blank := next((at for at, row in enumerate(rows) if not all(row[name] for name in needed)), None):
        raise CanvasError(f"{path}: row {blank + 1} lacks one of {expected}")
    return rows


def _same_count_of(files: Sequence[RegionsFile], channel: str | None) -> None:
    """CanvasError where the counts of one brain are of all cells, and of another of candidates or rows."""
    first: dict[str, Path] = {}
    for file in files:
        for row in file.rows():
            if (of := row.get("count_of")) and channel in (None, row.get("channel", "")):
                # Computed alike; that the recall may not hold in a brain is said where it was counted.
                first.setdefault(ALL_CELLS if of == ALL_CELLS_IF_RECALL_HOLDS else of, file.path)
    if len(first) > 1:
        (kind, at), (other, there) = list(first.items())[:2]
        raise CanvasError(
            f"{at} counts {kind}, {there} counts {other}; such counts do not compare. Refine and count all "
            "brains in the same way (canvas-fm refine apply, canvas-fm regions)"
        )


def _regions(file: RegionsFile, channel: str | None, hemisphere: str, without_children: bool) -> Table:
    """Name, acronym, count and volume by id."""
    path, rows = file.path, file.rows()
    columns: Sequence[str] = list(rows[0]) if rows else []
    if {"z", "y", "x"} <= set(columns):
        raise CanvasError(
            f"{path} is a table of cells. Cells of one brain are not independent samples: counting them as "
            "such finds differences where there are none. Count them per region first (canvas-fm regions)"
        )
    if missing := [name for name in _OF_REGIONS if name not in columns]:
        raise CanvasError(f"{path} has no column {missing[0]}; give a table that canvas-fm regions wrote")
    channels = sorted({row.get("channel", "") for row in rows})
    if channel is None and len(channels) > 1:
        raise CanvasError(f"{path} has the channels {', '.join(channels)}; choose one with --channel")
    if channel is not None and channel not in channels:
        raise CanvasError(f"{path} has no channel {channel}; found {', '.join(channels)}")
    count, volume = ("own_count", "own_volume_mm3") if without_children else ("count", "volume_mm3")
    by_id = {}
    for row in rows:
        if (channel is None or row.get("channel", "") == channel) and row.get(
            "hemisphere", "both"
        ) == hemisphere:
            try:
                region, cells, size = int(row["id"]), float(row[count]), float(row[volume])
            except ValueError as problem:
                raise CanvasError(
                    f"{path}: {problem}; expected numbers in id, {count}, {volume}"
                ) from problem
            if region in by_id:
                raise CanvasError(
                    f"{path} has the region {region} twice; expected one row a region and channel"
                )
            if not (0 <= cells < np.inf and 0 <= size < np.inf):
                raise CanvasError(
                    f"{path}: {row['name']} has {count} {cells:g} and {volume} {size:g}; expected numbers "
                    "from 0, as canvas-fm regions wrote them"
                )
            by_id[region] = (row["name"], row.get("acronym") or row["name"], cells, size)
    if not by_id:
        raise CanvasError(f"{path} has no rows of the hemisphere {hemisphere}")
    return by_id
