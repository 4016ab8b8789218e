"""Self-contained HTML pages from Jinja2 templates: inline style, no external files, no script needed."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_PACKAGE = Path(__file__).parents[2]
_STYLE = Path(__file__).with_name("page.css")
_LIGHT, _DARK = (244, 249, 253), (8, 58, 112)  # the ends of the heat map, one hue


def render(template: str, **values: Any) -> str:
    """Render a template of the package, `evaluation/tables/page.html`, with every value escaped.

    Templates extend `evaluation/page/page.html`: `script` runs by its checksum, so that one that somebody's
    text smuggles in does not, and no request leaves the page, whatever it holds.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if script := values.setdefault("script", ""):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    trusted = {"script": script, "policy": policy, "style": _STYLE.read_text(encoding="utf-8")}
    environment = Environment(
        loader=FileSystemLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["heatmap_cell_style"] = heatmap_cell_style
    return environment.get_template(template).render(values | {k: Markup(v) for k, v in trusted.items()})


def png_data(png: bytes) -> str:
    """A PNG as a `data:` URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def heatmap_cell_style(value: float) -> str:
    """CSS of a heat-map cell for a value in [0, 1]: background, and a text colour of enough contrast."""
    share = min(max(value, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_LIGHT, _DARK, strict=True))
    # Black or white: on any colour one of them has a contrast of 4.5 or more, no softer pair has.
    ink = "#ffffff" if contrast((255, 255, 255), (red, green, blue)) >= 4.5 else "#000000"
    return f"background:#{red:02x}{green:02x}{blue:02x};color:{ink}"


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2)."""
    dark, light = sorted(_luminance(colour) for colour in (first, second))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: tuple[int, int, int]) -> float:
    shares = [value / 255 for value in colour]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
