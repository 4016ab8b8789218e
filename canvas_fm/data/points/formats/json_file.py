"""JSON files of points: parsed with every digit, and distinguished from tables saved as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from canvas_fm.data.points.formats.neuroglancer_link import state_in_link
from canvas_fm.errors import CanvasError

_TABLE = "write it as CSV with columns z, y, x"


def load_json(path: Path) -> Any:
    """The content of a file, or of the link that it holds; CanvasError for what is no JSON, or is a table."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        text = state_in_link(path, text) or text
        content = json.loads(
            text,
            parse_float=Decimal,
            parse_constant=lambda name: _refuse(path, name),
            object_pairs_hook=unique_keys,
        )
    except (UnicodeDecodeError, ValueError, RecursionError) as problem:
        raise CanvasError(f"{path} is not readable as JSON: {problem}{_hint(problem)}") from problem
    kind = _kind(content)
    if kind is not None:
        raise CanvasError(f"{path} is {kind}, not of Neuroglancer's annotations; {_TABLE}")
    return content


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a key given twice, of which json takes the last value in silence."""
    content = dict(pairs)
    if len(content) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {key!r} is given twice in one object")
    return content


def _refuse(path: Path, constant: str) -> None:
    raise CanvasError(f"{path} holds {constant}; expected finite numbers")


def _hint(problem: Exception) -> str:
    """Formats that are sometimes called .json."""
    if not isinstance(problem, json.JSONDecodeError):
        return ""
    if not problem.doc.strip():
        return "; it is empty"
    if problem.msg == "Extra data" and problem.doc.lstrip()[0] in "{[":
        return f"; of one object a line, {_TABLE}"
    return "" if problem.doc.lstrip()[0] in "{[" else "; call a table .csv"


def _kind(content: Any) -> str | None:
    """Contents of a file that holds no annotations, None for what may be some."""
    if isinstance(content, Mapping):
        records = {"z", "y", "x"} <= set(content) or {"columns", "data"} <= set(content)
        return "a table in JSON, as pandas writes it" if records else None
    if not isinstance(content, list):
        return f"a lone {type(content).__name__}"
    if any(isinstance(row, Mapping) and {"x", "y", "z"} <= set(row) for row in content):
        return "a list of records"
    if content and not any(isinstance(row, Mapping) for row in content):
        return "a list of lists" if isinstance(content[0], list) else "a list of values"
    return None
