"""Output of verbs: results on stdout, skipped damage on stderr."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

from canvas_fm.errors import counted

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume

_WORDS = 60  # characters of a text that is a sentence and gets a line of its own


def report_step(sentence: str) -> None:
    """Report on stderr what begins now; nothing with --quiet."""
    if logging.getLogger("canvas_fm").level < logging.WARNING:
        print(f"canvas-fm: {sentence}", file=sys.stderr, flush=True)


def report_bad_chunks(volumes: list[Volume]) -> dict[str, Any]:
    """Report every skipped chunk on stderr; returns them as a part of the result, empty for none."""
    return report_bad_chunks_by_path({str(volume.path): list(volume.bad_chunks) for volume in volumes})


def report_bad_chunks_by_path(chunks_of: dict[str, list[str]]) -> dict[str, Any]:
    """`report_bad_chunks` for lists by path."""
    skipped = {path: chunks for path, chunks in chunks_of.items() if chunks}
    for path, chunks in skipped.items():
        print(
            f"canvas-fm: warning: {path}: {counted(len(chunks), 'damaged chunk', 'were')} read as zeros:",
            file=sys.stderr,
        )
        for sentence in chunks:
            print(f"  {sentence}", file=sys.stderr)
    return {"bad_chunks": skipped} if skipped else {}


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """Print one result on stdout: JSON, or aligned lines with the same keys."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        for number, line in enumerate(_lines(value)):
            print(f"{key if number == 0 else '':{width}}  {line}")


def _lines(value: Any) -> list[str]:
    """A value as text: lists of dictionaries and of sentences as one line each, deeper nesting as JSON."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [_plain(item) for item in value]
    if isinstance(value, list | tuple) and any(
        isinstance(item, str) and len(item) > _WORDS for item in value
    ):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and any(map(_is_nested, value.values())):
        return ["see --json"]
    return [_plain(value)]


def _is_nested(item: Any) -> bool:
    """Whether a line cannot show it: more than a pair of numbers."""
    pair = isinstance(item, list) and len(item) == 2 and all(isinstance(end, int | float) for end in item)
    return isinstance(item, dict | list) and bool(item) and not pair


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "  ".join(_plain(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    return "none" if value is None else str(value)
