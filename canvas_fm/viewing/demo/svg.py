"""Charts as inline SVG by matplotlib, in the page's light or dark colours, text as text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Sequence[tuple[float, float]]
_NAMES = ("muted", "line", "ink", "accent", "second", "g0", "g1", "g2", "g3", "g4", "g5")
# The page's CSS variables by colours that matplotlib can write and nothing else has.
_COLOUR = {name: f"#0102{number:02x}" for number, name in enumerate(_NAMES)}
_LINES = (("accent", "-"), ("second", "-"), ("g2", "--"), ("g3", ":"), ("g4", "-."))
_MARKERS = ("o", "s", "^", "D", "v", "o")
_WIDTH_IN, _HEIGHT_IN = 4.8, 3.5


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart: a value with the ends of its interval."""

    label: str
    value: float
    low: float
    high: float
    strong: bool = False


def line_chart(
    lines: Mapping[str, Line], *, title: str, x_label: str, y_label: str, dots: Sequence[str] = ()
) -> Markup:
    """Line chart from 0 up, the first series in the accent colour; series in `dots` with markers."""
    with _chart(title) as (figure, axes):
        for number, (name, line) in enumerate(lines.items()):
            colour, dash = _LINES[number % len(_LINES)]
            marker = "o" if name in dots else ""
            axes.plot(*zip(*line, strict=True), color=_COLOUR[colour], ls=dash, marker=marker, label=name)
        axes.set_ylim(bottom=0)
        axes.set(xlabel=x_label, ylabel=y_label)
        figure.legend(loc="outside lower left", ncols=2)
        return _svg(figure, title)


def scatter(
    groups: Mapping[str, Float[np.ndarray, "n 2"]], *, title: str, x_label: str, y_label: str
) -> Markup:
    """Scatter plot by group, distinguished by colour and shape."""
    with _chart(title) as (figure, axes):
        for number, (name, points) in enumerate(groups.items()):
            kind = number % len(_MARKERS)
            colour = _COLOUR[f"g{kind}"]
            fill = "none" if kind == 5 else colour  # a ring
            axes.plot(
                *points.T, ls="", marker=_MARKERS[kind], ms=4.5, mfc=fill, mec=colour, alpha=0.8, label=name
            )
        axes.set(xlabel=x_label, ylabel=y_label)
        figure.legend(loc="outside lower left", ncols=4)
        return _svg(figure, title)


def interval_chart(rows: Sequence[Interval], *, title: str, x_label: str, chance: float) -> Markup:
    """Values between 0 and 1 with intervals, one row each, and a dashed line at chance."""
    with _chart(title, height_in=0.9 + 0.46 * len(rows)) as (figure, axes):
        axes.axvline(chance, color=_COLOUR["muted"], ls="--", lw=1)
        axes.annotate("chance", (chance, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom")
        for number, row in enumerate(rows):
            colour = _COLOUR["accent" if row.strong else "muted"]
            axes.plot([row.low, row.high], [number, number], color=colour, lw=3, alpha=0.6)
            axes.plot([row.value], [number], color=colour, marker="o", ms=7)
            axes.annotate(row.label, (0, number), xytext=(2, 7), textcoords="offset points")
            axes.annotate(
                f"{row.value:.2f}", (1, number), xytext=(8, -3), textcoords="offset points",
                color=_COLOUR["ink"], annotation_clip=False,
            )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.6, -0.8), xticks=np.linspace(0, 1, 5), yticks=[])
        axes.set_xlabel(x_label)
        return _svg(figure, title)


@contextmanager
def _chart(title: str, height_in: float = _HEIGHT_IN) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the page's colours; `title` salts its element ids, which are unique on the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    muted, line = _COLOUR["muted"], _COLOUR["line"]
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "axes.edgecolor": muted,
        "axes.labelcolor": muted,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": line,
        "legend.frameon": False,
        "legend.handletextpad": 0.4,
        "legend.columnspacing": 1.2,
        "text.color": muted,
        "text.parse_math": False,  # a name may hold a $
        "xtick.color": muted,
        "ytick.color": muted,
    }
    with rc_context(style):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an inline SVG element: no URLs, no clipping, only used ids."""
    for artist in figure.findobj():
        artist.set_clip_on(False)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*</defs>", "", buffer.getvalue(), flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    content = text[text.index(">", text.index("<svg")) + 1 :]
    used = set(re.findall(r'href="#([^"]+)"', content))
    content = re.sub(r' id="([^"]+)"', lambda name: name[0] if name[1] in used else "", content)
    content = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", content)  # the page's own font
    for name, colour in _COLOUR.items():
        content = content.replace(colour, f"var(--{name})")
    label = escape(title)
    head = f'<svg class="chart" {view[0]} role="img" aria-label="{label}"><title>{label}</title>'
    return Markup(head + content)
