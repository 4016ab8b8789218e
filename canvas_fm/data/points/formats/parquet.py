"""Point tables as Parquet, through pyarrow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.files.atomic import write_atomic

_META = b"canvas_fm"  # the Parquet schema's key under which `meta` lies as JSON


def read_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Columns by name and `meta`; types other than number and boolean are read as text."""
    pyarrow, parquet = _pyarrow(path)
    try:
        names = parquet.read_schema(path).names
        if repeated := [name for name, times in Counter(names).items() if times > 1]:
            raise CanvasError(f"{path} has the column {repeated[0]} more than once; rename one of them")
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as problem:
        raise CanvasError(f"{path} cannot be read as Parquet: {problem}") from problem
    meta = json.loads((table.schema.metadata or {}).get(_META, b"{}"))
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pyarrow.types.is_boolean(kind) and column.null_count:
            columns[name] = np.array([np.nan if value is None else value for value in column.to_pylist()])
        elif (
            pyarrow.types.is_integer(kind)
            or pyarrow.types.is_floating(kind)
            or pyarrow.types.is_boolean(kind)
        ):
            columns[name] = column.to_numpy()
        else:
            try:
                texts = column.cast(pyarrow.string()).to_pylist()
            except pyarrow.ArrowException:  # lists and structures
                texts = [None if value is None else str(value) for value in column.to_pylist()]
            columns[name] = np.array(["" if text is None else text for text in texts], dtype=np.str_)
    return columns, meta


def write_parquet(path: Path, table: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> None:
    """Write a Parquet file atomically."""
    pyarrow, parquet = _pyarrow(path)
    with_meta = pyarrow.table(dict(table)).replace_schema_metadata({_META: json.dumps(dict(meta))})
    write_atomic(path, lambda temporary: parquet.write_table(with_meta, temporary))


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as problem:
        raise MissingExtra("pyarrow", "parquet", f"{path.suffix} ({path.name})") from problem
    return pyarrow, pyarrow.parquet
