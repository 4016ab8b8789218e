"""Metadata of a table in `TABLE.json` beside it, bound to the table by its sha256.

A plain table opens in pandas, R, Excel and Fiji as it is; what it was made from is stored next to it. A
sidecar of another file, or of a table that was changed since, is never believed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.checksum import read_sealed_json, seal_json, sha256

_log = logging.getLogger(__name__)
_KEYS = {"table_sha256", "rows", "meta"}


def sidecar_of(table: Path) -> Path:
    """`cells.csv.json` of `cells.csv`."""
    return table.with_name(table.name + ".json")


def read_sidecar(table: Path) -> dict[str, str]:
    """The metadata of a table; empty without a sidecar, and with a warning if it is not of this table."""
    path = sidecar_of(table)
    if not path.is_file():
        return {}
    content = _load(path)
    if content is None:
        _log.warning("%s is no sidecar that was written with a table, or was edited; it is not used", path)
        return {}
    if content["table_sha256"] != sha256(table):
        _log.warning(
            "%s was changed after %s was written, or that is of another file: what it states "
            "(volume, model, voxel size, threshold) is not used",
            table,
            path.name,
        )
        return {}
    return {str(key): str(value) for key, value in content["meta"].items()}


def is_as_written(table: Path) -> bool:
    """Whether a table and the sidecar that was written with it are both as they were."""
    content = _load(sidecar_of(table))
    return content is not None and table.is_file() and content["table_sha256"] == sha256(table)


def warn_if_changed(table: Path) -> None:
    """Warn where a table is another one than when the JSON beside it was written, whichever kind that is."""
    try:
        stated = json.loads(sidecar_of(table).read_bytes())["table_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or it states nothing
        return
    if stated != sha256(table):
        _log.warning("%s was changed after %s was written: edited or damaged", table, sidecar_of(table).name)


def check_sidecar_place(table: Path, meta: Mapping[str, str]) -> None:
    """Raise CanvasError if a table's sidecar would replace a file that is none."""
    path = sidecar_of(table)
    if meta and path.exists() and _load(path) is None:
        raise CanvasError(
            f"{path} is there already and is no sidecar of a table; it would be replaced: move it, or give "
            "the table another name"
        )


def write_sidecar(table: Path, written: Path, rows: int, meta: Mapping[str, str]) -> None:
    """Write the sidecar of a table whose contents are those of the temporary file `written`.

    Written before the table takes its name: a kill in between leaves a sidecar that no table matches.
    """
    path = sidecar_of(table)
    if meta:
        write_text_atomic(
            path, seal_json({"table_sha256": sha256(written), "rows": rows, "meta": dict(meta)})
        )
    elif path.is_file() and _load(path) is not None:
        path.unlink()


def _load(path: Path) -> dict[str, Any] | None:
    content = read_sealed_json(path)
    if content is None or set(content) != _KEYS or not isinstance(content["meta"], dict):
        return None
    return content
