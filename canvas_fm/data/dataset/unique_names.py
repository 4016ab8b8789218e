"""Unique names for the volumes of one command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError


def unique_names(volumes: Sequence[Volume]) -> list[str]:
    """Names of the volumes, equal ones with the parent folder; CanvasError if still equal."""
    shared = Counter(volume.name for volume in volumes)
    names = [_long_name(volume) if shared[volume.name] > 1 else volume.name for volume in volumes]
    for name, times in Counter(names).items():
        if times > 1:
            raise CanvasError(f"{times} volumes are called {name!r}; give each once, or rename their folders")
    return names


def _long_name(volume: Volume) -> str:
    path = volume.path.resolve()
    parent = path.parent.parent if path.parent.name == volume.name else path.parent
    return f"{parent.name}/{volume.name}"
