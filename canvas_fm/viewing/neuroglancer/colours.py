"""Colours of points by a column: the viewer's shader and the legend beside it, from the same stops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError

COLUMNS = ("p_cell", "score", "label", "region")  # the first that the points have colours them
STOPS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")  # viridis: even steps of lightness
KINDS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")
_MOST_KINDS = 12  # more values than that of whole numbers are a scale
_LISTED = 24
_SIZE = "#uicontrol float size slider(min=1, max=20, step=0.5, default=7)\n"


@dataclass(frozen=True)
class Colouring:
    """Colouring of points: `values` of each entry's text, `low` and `high` of a scale.

    `column` is None where nothing colours them. A threshold hides points of a scale below it.
    """

    column: str | None = None
    low: float = 0.0
    high: float = 1.0
    entries: tuple[tuple[str, str], ...] = ()  # text, colour
    stops: tuple[str, ...] = ()

    @property
    def shader(self) -> str:
        """GLSL of an annotation layer, with a slider for size and one for the threshold of a scale."""
        if self.column is None:
            body = f'#uicontrol vec3 color color(default="{STOPS[-1]}")\nvoid main() {{\n  setColor(color);\n'
        else:
            body = _kinds(self) if self.entries else _scale(self)
        return _SIZE + body + "  setPointMarkerSize(size);\n  setPointMarkerBorderWidth(0.5);\n}\n"


def _kinds(colouring: Colouring) -> str:
    """A colour for each value of a column, which begin anew after the last."""
    count, low = len(KINDS), int(colouring.low)
    return (
        f"const vec3 kinds[{count}] = {_table(KINDS)};\nvoid main() {{\n"
        f"  int kind = int(prop_{colouring.column}()) - ({low});\n"
        f"  setColor(kinds[((kind % {count}) + {count}) % {count}]);\n"
    )


def _scale(colouring: Colouring) -> str:
    """Colours along a scale; what lies below the threshold, or is NaN once there is one, is hidden."""
    low, high, last = colouring.low, colouring.high, len(colouring.stops) - 1
    return (
        f"#uicontrol float threshold slider(min={low:.6g}, max={high:.6g}, step={(high - low) / 200:.3g}, "
        f"default={low:.6g})\n"
        f"const vec3 stops[{last + 1}] = {_table(colouring.stops)};\nvoid main() {{\n"
        f"  float value = float(prop_{colouring.column}());\n"
        f"  if (threshold > {_float(low)} && !(value >= threshold)) discard;\n"
        f"  float place = clamp((value - {_float(low)}) / {_float(high - low)}, 0.0, 1.0) * {last}.0;\n"
        f"  int below = min(int(place), {last - 1});\n"
        "  setColor(mix(stops[below], stops[below + 1], place - float(below)));\n"
    )


def colouring_of(points: Points, color_by: str | None = None) -> Colouring:
    """Colours by a column, else by the first of p_cell, score, label and region that the points have."""
    if color_by is not None and color_by not in points.columns:
        raise CanvasError(
            f"the points have no column {color_by!r} to be coloured by; they have "
            f"{', '.join(points.columns) or 'none'}"
        )
    column = color_by or next((name for name in COLUMNS if name in points.columns), None)
    if column is None or not len(points):
        return Colouring()
    values = points.columns[column]
    if values.dtype.kind in "UO":
        texts = np.unique(values.astype(np.str_)).tolist()
        return Colouring(column, 0, len(texts), _entries(texts))
    if values.dtype.kind in "iub" and len(kinds := np.unique(values)) <= _MOST_KINDS:
        least = int(kinds[0])
        entries = tuple((str(int(kind)), KINDS[(int(kind) - least) % len(KINDS)]) for kind in kinds)
        return Colouring(column, least, int(kinds[-1]), entries)
    finite = values[np.isfinite(values.astype(np.float64))].astype(np.float64)
    low, high = np.percentile(finite, (0.5, 99.5)).tolist() if len(finite) else (0.0, 1.0)
    if column.startswith("p_") and finite.min(initial=0) >= 0 and finite.max(initial=0) <= 1:
        low, high = 0.0, 1.0
    return Colouring(column, low, high if high > low else low + 1, stops=STOPS)


def _entries(texts: list[str]) -> tuple[tuple[str, str], ...]:
    listed = tuple((text, KINDS[place % len(KINDS)]) for place, text in enumerate(texts[:_LISTED]))
    left = len(texts) - len(listed)
    return (*listed, (f"and {left} more, in the same colours", KINDS[-1])) if left else listed


def _table(colours: tuple[str, ...]) -> str:
    return f"vec3[{len(colours)}]({', '.join(_vec3(colour) for colour in colours)})"


def _vec3(colour: str) -> str:
    return "vec3({:.4f}, {:.4f}, {:.4f})".format(*(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)))


def _float(value: float) -> str:
    """A GLSL float: a whole number needs its point."""
    text = f"{value:.6g}"
    text = text if any(letter in text for letter in ".e") else f"{text}.0"
    return f"({text})" if value < 0 else text
