"""The tree of an atlas' regions, and sums over each region with its children."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, Shaped

from canvas_fm.errors import CanvasError, counted

# The names that BrainGlobe, the Allen Institute, QUINT and ITK-SNAP give to the columns.
_ID = ("id", "idx", "structure_id", "region_id", "label", "index")
_NAME = ("name", "safe_name", "structure_name", "region_name", "full_name")
_ACRONYM = ("acronym", "abbreviation", "abbrev", "symbol")
_PARENT = ("parent_structure_id", "parent_id", "parent")
_PATH = ("structure_id_path", "id_path", "path")


@dataclass(frozen=True)
class Region:
    """One region: `parent` is the id of the region that it is part of, None at the top."""

    id: int
    name: str
    acronym: str
    parent: int | None = None


@dataclass(frozen=True)
class RegionTree:
    """The regions of an atlas by rising id; label 0 is outside and no region."""

    regions: tuple[Region, ...]

    @classmethod
    def of(cls, regions: Sequence[Region], source: str = "the table of regions") -> RegionTree:
        """Sorted and validated: ids are unique, each has a name, parents exist and form no circle."""
        kept = sorted((region for region in regions if region.id != 0), key=lambda region: region.id)
        ids = [region.id for region in kept]
        if not kept:
            raise CanvasError(f"{source} names no region")
        if repeated := next((a for a, b in pairwise(ids) if a == b), None):
            raise CanvasError(f"{source} has the id {repeated} twice; expected one row a region")
        if unnamed := [region.id for region in kept if not region.name.strip()]:
            raise CanvasError(
                f"{source} has no name for {counted(len(unnamed), 'region')}, first for the id {unnamed[0]}; "
                "every region needs one"
            )
        known = set(ids)
        if lost := next(
            (region for region in kept if region.parent is not None and region.parent not in known), None
        ):
            raise CanvasError(f"{source}: {lost.name!r} is part of {lost.parent}, which is not in the table")
        tree = cls(tuple(kept))
        if (tree.depth < 0).any():
            inside = kept[int(np.argmin(tree.depth))]
            raise CanvasError(f"{source}: {inside.name!r} is part of itself, by way of its parents")
        return tree

    @classmethod
    def read(cls, path: str | Path) -> RegionTree:
        """From a CSV or TSV with columns id and name, and where there are some acronym and
        parent_structure_id or structure_id_path; or from BrainGlobe's or the Allen Institute's JSON."""
        path = Path(path)
        if not path.is_file():
            raise CanvasError(f"no table of regions at {path}; give a .csv or .json with columns id and name")
        rows = _json_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path)
        return cls.of(_regions(path, rows), str(path))

    def __len__(self) -> int:
        return len(self.regions)

    @cached_property
    def ids(self) -> Int64[np.ndarray, " r"]:
        """Ids, rising."""
        return np.array([region.id for region in self.regions], np.int64)

    @cached_property
    def parents(self) -> Int64[np.ndarray, " r"]:
        """Row of each region's parent, -1 at the top."""
        at = {region.id: row for row, region in enumerate(self.regions)}
        return np.array(
            [-1 if region.parent is None else at[region.parent] for region in self.regions], np.int64
        )

    @cached_property
    def depth(self) -> Int64[np.ndarray, " r"]:
        """Steps from the top, 0 there; negative for what never comes to the top."""
        depth, row, left = np.zeros(len(self), np.int64), self.parents.copy(), len(self)
        while (row >= 0).any() and left >= 0:
            depth += row >= 0
            row = np.where(row >= 0, self.parents[row], -1)
            left -= 1
        return np.where(row >= 0, -1, depth)

    def rows_of(self, labels: Integer[np.ndarray, ...]) -> Int64[np.ndarray, ...]:
        """Row of each label, -1 for 0 and for labels that the table does not name."""
        place = np.minimum(np.searchsorted(self.ids, labels), len(self) - 1)
        return np.where(self.ids[place] == labels, place, -1)

    def with_children(self, own: Shaped[np.ndarray, "r ..."]) -> Shaped[np.ndarray, "r ..."]:
        """Sums over each region and everything that is part of it."""
        total = own.copy()
        for level in range(int(self.depth.max()), 0, -1):
            rows = np.flatnonzero(self.depth == level)
            np.add.at(total, self.parents[rows], total[rows])
        return total


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_text(encoding="latin-1")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise CanvasError(f"{path} is empty; expected a table of regions with columns id and name")
    delimiter = max(",;\t", key=lines[0].count)
    for row in csv.DictReader(lines, delimiter=delimiter):
        yield {str(key).strip().lower(): value for key, value in row.items()}


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise CanvasError(f"{path} is not readable as JSON: {problem}") from problem
    held = held.get("msg", held) if isinstance(held, dict) else held
    waiting = list(held) if isinstance(held, list) else [held]
    while waiting:
        row = waiting.pop()
        if not isinstance(row, dict):
            raise CanvasError(f"{path}: expected a list of regions with id and name, found {row!r:.40}")
        waiting += row.get("children", [])
        yield row


def _regions(path: Path, rows: Iterator[Mapping[str, Any]]) -> list[Region]:
    table = list(rows)
    columns = list(dict.fromkeys(key for row in table for key in row))
    id_, name = (_column(columns, names) for names in (_ID, _NAME))
    if id_ is None or name is None:
        raise CanvasError(
            f"{path} has no column {'id' if id_ is None else 'name'}; found {', '.join(columns) or 'none'}. "
            "A table of regions says which label of the volume is which region (id, name)"
        )
    acronym, parent, chain = (_column(columns, names) for names in (_ACRONYM, _PARENT, _PATH))
    ids = [_whole(path, row.get(id_), id_) for row in table]
    known = {number for number in ids if number is not None}
    regions = []
    for number, row in zip(ids, table, strict=True):
        if number is None:
            raise CanvasError(f"{path}: a row named {row.get(name)!r} has no {id_}")
        title = str(row.get(name) or "").strip()
        short = str((row.get(acronym) if acronym else None) or title).strip()
        above = _parent_of(path, row, parent, chain, number, known)
        regions.append(Region(number, title, short, above))
    return regions


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _whole(path: Path, value: Any, column: str) -> int | None:
    text = "" if value is None else str(value).strip()
    if text.lower() in ("", "nan", "none", "null"):
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0.5
    if not abs(number) < 2**63 or number != int(number):
        raise CanvasError(f"{path}: {column} is {text[:40]!r}; expected a whole number")
    return int(text) if text.lstrip("+-").isdigit() else int(number)


def _parent_of(
    path: Path, row: Mapping[str, Any], parent: str | None, chain: str | None, number: int, known: set[int]
) -> int | None:
    """The region above, by the path of ids where there is one: of a part of a tree the nearest one kept."""
    if chain is not None and row.get(chain):
        held = row[chain]
        parts = held if isinstance(held, list) else str(held).strip("/ ").replace("-", "/").split("/")
        above = [_whole(path, part, chain) for part in parts]
        return next(
            (ancestor for ancestor in reversed(above) if ancestor in known and ancestor != number), None
        )
    above_id = _whole(path, row.get(parent), parent) if parent is not None else None
    return None if above_id in (None, 0, -1, number) else above_id
