"""The files and folders that a command writes, checked before its work begins."""

from __future__ import annotations

import argparse
from pathlib import Path

from canvas_fm.data.store.keys import is_store


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
    try:
        return next((above for above in path.absolute().parents if is_store(above)), None)
    except OSError:  # writing says why
        return None
