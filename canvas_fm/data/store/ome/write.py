"""OME-Zarr attributes of the volumes that are written: levels, axes, channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF", "FFFFFF")


def write_metadata(
    levels: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    name: str,
    *,
    version: str = "0.5",
    channels: bool = False,
) -> dict[str, Any]:
    """The OME-Zarr attributes of a volume, 0.5 or 0.4: path, voxel size and first centre of each level.

    With `channels` the first axis is c, then z, y, x.
    """
    scale, start = ([1.0], [0.0]) if channels else ([], [])
    datasets = [
        {
            "path": path,
            "coordinateTransformations": [
                {"type": "scale", "scale": [*scale, *voxel_um]},
                {"type": "translation", "translation": [*start, *first_um]},
            ],
        }
        for path, voxel_um, first_um in levels
    ]
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if channels else []
    axes += [{"name": letter, "type": "space", "unit": "micrometer"} for letter in "zyx"]
    image = {"name": name, "axes": axes, "datasets": datasets}
    if version == "0.4":
        return {"multiscales": [{"version": version, **image}]}
    return {"version": version, "multiscales": [image]}


def write_channels(
    names: Sequence[str], windows: Sequence[Sequence[float] | None], dtype: np.dtype
) -> dict[str, Any]:
    """The `omero` attribute: name, colour and intensity window of each channel, as viewers show it."""
    low, high = (0.0, 1.0) if dtype.kind == "f" else map(float, (np.iinfo(dtype).min, np.iinfo(dtype).max))
    channels = []
    for at, (name, window) in enumerate(zip(names, windows, strict=True)):
        start, end = window or (low, high)
        shown = {"min": min(low, start), "max": max(high, end), "start": start, "end": end}
        channels.append(
            {"label": name, "color": _COLOURS[at % len(_COLOURS)], "active": True, "window": shown}
        )
    return {"channels": channels}
