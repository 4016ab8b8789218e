"""Charts as inline SVG: they follow the page's light or dark colours, stay sharp and need no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape

Line = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 480, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 46


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart: a value with the ends of its interval."""

    label: str
    value: float
    low: float
    high: float
    strong: bool = False


@dataclass(frozen=True)
class _Axes:
    """From data to the pixels of the view box."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    lines: Mapping[str, Line], *, title: str, x_label: str, y_label: str, dots: Sequence[str] = ()
) -> Markup:
    """One line a series, the first in the accent colour; the series in `dots` with their points."""
    every = [point for line in lines.values() for point in line]
    axes = _Axes(_span([x for x, _ in every], pad=0.0), _span([0.0, *(y for _, y in every)], pad=0.06))
    axes = _Axes(axes.x, (0.0, axes.y[1]))
    parts = [_frame(axes, x_label, y_label)]
    for number, (name, line) in enumerate(lines.items()):
        places = [axes.at(x, y) for x, y in line]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="line s{number}" d="{path}"><title>{escape(name)}</title></path>')
        if name in dots:
            parts += [f'<circle class="dot s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]
    return Markup(
        _svg(title, "".join(parts)) + _legend([(f"s{n}", name, None) for n, name in enumerate(lines)])
    )


def scatter(
    groups: Mapping[str, Float[np.ndarray, "n 2"]], *, title: str, x_label: str, y_label: str
) -> Markup:
    """Points coloured and shaped by group: no group is told by its colour alone."""
    every = np.concatenate(list(groups.values()))
    axes = _Axes(_span(every[:, 0], pad=0.04), _span(every[:, 1], pad=0.04))
    parts = [_frame(axes, x_label, y_label)]
    for number, (name, points) in enumerate(groups.items()):
        shapes = "".join(_shape(number, *axes.at(float(x), float(y))) for x, y in points)
        parts.append(f'<g class="mark g{number}"><title>{escape(name)}</title>{shapes}</g>')
    return Markup(
        _svg(title, "".join(parts)) + _legend([(f"g{n}", name, n) for n, name in enumerate(groups)])
    )


def interval_chart(
    rows: Sequence[Interval], *, title: str, x_label: str, chance: float, chance_label: str = "chance"
) -> Markup:
    """Values between 0 and 1 with their intervals, one row each, and a dashed line at chance."""
    step, top, left = 46, 26, 14
    height = top + step * len(rows) + 44
    right = WIDTH - 62

    def across(value: float) -> float:
        return left + value * (right - left)

    bottom = top + step * len(rows)
    parts = [f'<path class="axis" d="M{left} {bottom}H{right}"/>']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path class="grid" d="M{across(tick):.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{across(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path class="chance" d="M{across(chance):.1f} {top - 4}V{bottom}"/>')
    parts.append(
        f'<text class="muted" x="{across(chance):.1f}" y="{top - 9}" text-anchor="middle">'
        f"{escape(chance_label)}</text>"
    )
    for number, row in enumerate(rows):
        y = top + step * number + 31
        kind = "strong" if row.strong else "plain"
        parts += [
            f'<text x="{left + 3}" y="{y - 12}">{escape(row.label)}</text>',
            f'<path class="interval {kind}" d="M{across(row.low):.1f} {y}H{across(row.high):.1f}"/>',
            f'<circle class="value {kind}" cx="{across(row.value):.1f}" cy="{y}" r="5"/>',
            f'<text class="number" x="{WIDTH - 6}" y="{y + 4}" text-anchor="end">{row.value:.2f}</text>',
        ]
    middle = (left + right) / 2
    parts.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return Markup(_svg(title, "".join(parts), height))


def _span(values: Sequence[float] | np.ndarray, pad: float) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    margin = (high - low) * pad or (0.0 if high > low else 0.5)
    return low - margin, high + margin


def _frame(axes: _Axes, x_label: str, y_label: str) -> Markup:
    left, bottom = axes.at(axes.x[0], axes.y[0])
    right, top = axes.at(axes.x[1], axes.y[1])
    parts = []
    for value in ticks(*axes.y):
        y = axes.at(axes.x[0], value)[1]
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    for value in ticks(*axes.x):
        x = axes.at(value, axes.y[0])[0]
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{value:.6g}</text>')
    parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    parts.append(
        f'<text x="{(left + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = (top + bottom) / 2
    parts.append(
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _shape(number: int, x: float, y: float) -> str:
    """A small circle, square, triangle, diamond, inverted triangle or ring around (x, y)."""
    kind = number % 6
    if kind in (0, 5):
        extra = ' class="ring"' if kind == 5 else ""
        return f'<circle{extra} cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    if kind == 1:
        return f'<path d="M{x - 2.8:.1f} {y - 2.8:.1f}h5.6v5.6h-5.6z"/>'
    if kind == 3:
        return f'<path d="M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4-4z"/>'
    up = -1 if kind == 2 else 1
    return f'<path d="M{x:.1f} {y + up * 3.8:.1f}l3.7 {-up * 6.6:.1f}h-7.4z"/>'


def _legend(entries: Sequence[tuple[str, str, int | None]]) -> str:
    """`(css class, name, shape)` of each series as a list below the chart."""
    items = []
    for css, name, shape in entries:
        drawing = '<path class="line" d="M0 7H18"/>' if shape is None else _shape(shape, 9, 7)
        group = (
            f'<g class="mark {css}">{drawing}</g>'
            if shape is not None
            else drawing.replace("line", f"line {css}")
        )
        items.append(
            '<li><svg viewBox="0 0 18 14" width="18" height="14" aria-hidden="true">'
            f"{group}</svg>{escape(name)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _svg(title: str, content: str, height: int = HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{content}</svg>"
    )
