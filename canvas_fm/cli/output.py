"""Output of verbs: results on stdout, skipped damage on stderr, and checks of the paths that are written."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
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


class OutputPaths:
    """Arguments that name a file or a folder to write, by destination; `folders` are those of folders."""

    def __init__(self) -> None:
        self.actions: dict[str, argparse.Action] = {}
        self.folders: set[str] = set()

    def add(self, action: argparse.Action, *, is_folder: bool) -> None:
        """Count an argument as an output."""
        self.actions[action.dest] = action
        self.folders |= {action.dest} if is_folder else set()

    def faults(self, typed: argparse.Namespace) -> list[str]:
        """One message for each output that would replace something, or be written into a Zarr store."""
        faults: list[str] = []
        seen: dict[Path, str] = {}
        for dest in dict.fromkeys((*self.actions, "out")):
            if isinstance(out := getattr(typed, dest, None), str) and (store := _store_around(Path(out))):
                faults.append(
                    f"{out} lies inside {store}, a Zarr store, which would be changed; write beside it"
                )
        for dest, action in self.actions.items():
            if not isinstance(value := getattr(typed, dest, None), str):
                continue
            path, name = Path(value), "/".join(action.option_strings) or str(action.metavar or dest)
            if (other := seen.setdefault(path.absolute(), name)) != name:
                faults.append(f"{other} and {name} are both {path}; give each a file of its own")
            elif fault := self._fault(path, name, typed, is_folder=dest in self.folders):
                faults.append(fault)
        return faults

    def _fault(self, path: Path, name: str, typed: argparse.Namespace, *, is_folder: bool) -> str | None:
        try:
            if path.is_dir():
                if not is_folder:
                    return f"{path} is a folder; give {name} the name of a file"
                full = any(path.iterdir())
            else:  # an empty file holds nothing; /dev/null is none
                full = path.is_file() and path.stat().st_size > 0
                if full and is_folder:
                    return f"{path} is a file; give {name} a folder"
        except OSError:  # writing says why
            return None
        if not full or getattr(typed, "overwrite", False):
            return None
        return f"{path} is there already; give another {name}, or --overwrite to replace it"


def _store_around(path: Path) -> Path | None:
    """The Zarr store that a path lies in."""
    from canvas_fm.data.store.files import is_store

    try:
        return next((above for above in path.absolute().parents if is_store(above)), None)
    except OSError:  # writing says why
        return None
