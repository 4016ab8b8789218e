"""Axes of OME-Zarr metadata: a letter and a unit for each, in stored order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from canvas_fm.data.store.files import Files
from canvas_fm.errors import CanvasError

_NAMED = {"channel": "c", "channels": "c", "ch": "c", "time": "t", "frame": "t"}  # where no type is given
_SPACE = {
    "depth": "z", "plane": "z", "slice": "z", "height": "y", "row": "y", "width": "x", "column": "x",
    "col": "x",
}  # fmt: skip


def axes_of_system(files: Files, image: dict[str, Any]) -> Any:
    """The axes of OME-Zarr 0.6: of the coordinate system that level 0 is placed in.

    Raises CanvasError where the level's axes are exchanged on the way there, which nothing here follows.
    """
    systems = image.get("coordinateSystems")
    systems = [system for system in systems if isinstance(system, dict)] if isinstance(systems, list) else []
    levels = image.get("datasets")
    first = levels[0] if isinstance(levels, list) and levels and isinstance(levels[0], dict) else {}
    steps = first.get("coordinateTransformations")
    steps = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    if any(step.get("type") == "mapAxis" for step in steps):
        raise CanvasError(f"{files} exchanges its axes (mapAxis); save it with its axes in their order")
    target = steps[0].get("output") if steps else None
    chosen = next(
        (system for system in systems if system.get("name") == target), systems[0] if systems else {}
    )
    return chosen.get("axes")


def read_axes(files: Files, axes: Any) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Letter and unit of each axis, in stored order."""
    if isinstance(axes, list) and all(isinstance(axis, str) for axis in axes):
        axes = [{"name": axis} for axis in axes]  # OME-Zarr 0.3
    if not isinstance(axes, list) or not all(isinstance(axis, dict) for axis in axes):
        raise CanvasError(f"{files}: 'axes' is {short(axes)} where a list of objects is expected")
    names = [axis.get("name") for axis in axes]
    if not all(isinstance(name, str) for name in names):
        raise CanvasError(f"{files}: an axis has no name; axes are {short(names)}")
    letters = tuple(axis_letter(name, axis.get("type")) for name, axis in zip(names, axes, strict=True))
    check_axes(files, names, letters)
    return letters, tuple(axis.get("unit") for axis in axes)


def axis_letter(name: str, kind: Any) -> str:
    if kind == "time":
        return "t"
    if kind == "channel":
        return "c"
    lower = name.lower()
    if kind is None and lower in _NAMED:
        return _NAMED[lower]
    lower = _SPACE.get(lower, lower)
    if kind == "space":
        return lower if lower in ("z", "y", "x") else "?"
    return lower if kind is None and lower in ("t", "c", "z", "y", "x") else "?"


def check_axes(files: Files, names: Sequence[Any], letters: Sequence[str]) -> None:
    listing = ", ".join(map(str, names))
    for letter in "zyx":
        if letters.count(letter) != 1:
            raise CanvasError(
                f"{files} has the axes {listing}; a volume needs each of z, y and x once"
                + (" (this is a 2D image)" if len(letters) == 2 else "")
            )
    if letters.count("t") > 1 or letters.count("c") > 1:
        raise CanvasError(f"{files} has the axes {listing}; more than one of them is time or channel")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
