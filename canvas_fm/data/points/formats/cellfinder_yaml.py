"""Points as cellfinder YAML, which brainglobe-utils writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from canvas_fm.data.points.tables import PointTable
from canvas_fm.errors import CanvasError
from canvas_fm.files.strict_yaml import UniqueKeys

YAML = (".yml", ".yaml")
_AXES = ("z", "y", "x")


def read_cellfinder_yaml(path: Path) -> PointTable:
    """The candidates of a cellfinder YAML in file order; `type` 2 is a cell, 1 is not."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as problem:
        text = " ".join(str(problem).split())[:200]
        raise CanvasError(f"{path} is not readable as YAML: {text}") from problem
    cells = content.get("candidate_cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        raise CanvasError(f"{path} has no list 'candidate_cells'; expected cellfinder's YAML")
    zyx = [[_number(path, row, cell, axis) for axis in _AXES] for row, cell in enumerate(cells, 1)]
    types = [_number(path, row, cell, "type") for row, cell in enumerate(cells, 1)]
    if any(kind != int(kind) for kind in types):
        raise CanvasError(f"{path}: cellfinder's types are whole numbers; found {types}")
    columns = {"type": np.array(types, np.int64)}
    return PointTable(np.array(zyx, np.float64).reshape(-1, 3), columns, {})


def _number(path: Path, row: int, cell: Any, name: str) -> float:
    value = cell.get(name) if isinstance(cell, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(float(value)):
        raise CanvasError(f"{path}: cell {row} has {name} {value!r}; expected a finite number")
    return float(value)


_FASTEST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(UniqueKeys, _FASTEST):
    """YAML loader that refuses duplicate keys: of two files put together half of the cells would be lost."""
