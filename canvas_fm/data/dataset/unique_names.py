"""Unique names for the volumes of one command, and a check that what belongs to each is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Sized

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, counted


def unique_names(volumes: Sequence[Volume]) -> list[str]:
    """Names of the volumes, equal ones with the parent folder; CanvasError if still equal."""
    shared = Counter(volume.name for volume in volumes)
    names = [_long_name(volume) if shared[volume.name] > 1 else volume.name for volume in volumes]
    for name, times in Counter(names).items():
        if times > 1:
            raise CanvasError(f"{times} volumes are called {name!r}; give each once, or rename their folders")
    return names


def check_one_each(volumes: Sized, companions: Mapping[str, Sized | None]) -> None:
    """CanvasError where something was given in another number than the volumes that it belongs to."""
    for what, values in companions.items():
        if values is not None and len(values) != len(volumes):
            raise CanvasError(
                f"{counted(len(volumes), 'volume')} and {len(values)} of {what} were given; "
                "give one a volume, in their order"
            )


def _long_name(volume: Volume) -> str:
    path = volume.path.resolve()
    parent = path.parent.parent if path.parent.name == volume.name else path.parent
    return f"{parent.name}/{volume.name}"
