"""Voxel size from the coordinate transformations and units of OME-Zarr metadata."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from canvas_fm.data.store.files import Files
from canvas_fm.data.store.ome.axes import short
from canvas_fm.data.zyx import ZyxUm

# The length units of OME-Zarr (and three common spellings) in micrometres.
_PREFIXES = {
    "yotta": 24, "zetta": 21, "exa": 18, "peta": 15, "tera": 12, "giga": 9, "mega": 6, "kilo": 3, "hecto": 2,
    "": 0, "deci": -1, "centi": -2, "milli": -3, "micro": -6, "nano": -9, "pico": -12, "femto": -15,
    "atto": -18, "zepto": -21, "yocto": -24,
}  # fmt: skip
UNITS_UM = {f"{prefix}meter": 10.0 ** (power + 6) for prefix, power in _PREFIXES.items()} | {
    "angstrom": 1e-4, "inch": 25_400.0, "foot": 304_800.0, "yard": 914_400.0, "mile": 1.609344e9,
    "parsec": 3.0856775814913673e22, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0,
    "nm": 1e-3, "mm": 1e3,
}  # fmt: skip
_HUGE = 1e300  # a number of JSON may be longer than any float
_log = logging.getLogger(__name__)


def read_scale(files: Files, where: str, steps: Any, axes: Sequence[str]) -> tuple[list[float] | None, str]:
    """Product of the scale transformations, None if absent; or None and why they cannot be used.

    A translation moves the origin only. A mirrored axis keeps its size; three numbers for more axes are those
    of z, y and x in their order.
    """
    if steps is None:
        return None, ""
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return None, f"coordinateTransformations of {where} is {short(steps)}, not a list of objects"
    scale: list[float] | None = None
    for step in _unpacked(steps):
        if step.get("type") == "translation":
            continue
        if step.get("type") == "identity" and not {"scale", "path"} & set(step):
            scale = scale or [1.0] * len(axes)
            continue
        values = _diagonal(step) if step.get("type") == "affine" else step.get("scale")
        if step.get("type") not in ("scale", "affine") or not isinstance(values, list):
            return None, f"{where} has the transformation {short(step)}, only a scale can be read"
        if not all(_is_number(value) for value in values):
            return None, f"{where} has scale {short(values)}, expected {len(axes)} numbers"
        if len(values) == 3 < len(axes):
            spatial = iter(values)
            values = [next(spatial) if axis in "zyx" else 1.0 for axis in axes]
        if len(values) != len(axes) or not all(0 < abs(value) < _HUGE for value in values):
            return (
                None,
                f"{where} has scale {short(values)}, expected {len(axes)} numbers, none of them 0",
            )
        if min(values) < 0:
            _log.warning("%s: %s is mirrored by its scale %s; the size is used", files, where, short(values))
        scale = [old * abs(value) for old, value in zip(scale or [1.0] * len(axes), values, strict=True)]
    return scale, ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _diagonal(step: Mapping[str, Any]) -> list[Any] | None:
    """The scale of an affine transformation (OME-Zarr 0.6) that scales and shifts; None where it does more.

    Its rows are those of a matrix with the translation as last column.
    """
    rows = step.get("affine")
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == len(rows) + 1 and all(map(_is_number, row)) for row in rows
    ):
        return None
    linear = [(i, j, row[j]) for i, row in enumerate(rows) for j in range(len(rows))]
    return [value for i, j, value in linear if i == j] if not any(v for i, j, v in linear if i != j) else None


def _unpacked(steps: Sequence[Any]) -> list[Any]:
    """Transformations in their order; those of a sequence (OME-Zarr 0.6) one by one."""
    flat: list[Any] = []
    for step in steps:
        inner = step.get("transformations") if step.get("type") == "sequence" else None
        known = isinstance(inner, list) and all(isinstance(transform, dict) for transform in inner)
        flat += inner if known and isinstance(inner, list) else [step]
    return flat


def voxel_um_of(
    axes: Sequence[str], units: Sequence[Any], scale: Sequence[float]
) -> tuple[ZyxUm | None, str]:
    sizes = []
    for letter in "zyx":
        at = axes.index(letter)
        unit = units[at]
        if unit is None:
            return None, f"no unit on axis {letter}"
        factor = UNITS_UM.get(_spelt(unit)) if isinstance(unit, str) else None
        if factor is None:
            return None, f"the unit {short(unit)} on axis {letter} is no length"
        sizes.append(scale[at] * factor)
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        return None, f"the sizes {sizes} are no lengths"
    return (sizes[0], sizes[1], sizes[2]), ""


def _spelt(unit: str) -> str:
    """A unit as the specification spells it: `Micrometers` and `micrometre` are micrometer."""
    lower = unit.strip().lower()
    return re.sub(r"met(?:er|re)s?$", "meter", lower)
