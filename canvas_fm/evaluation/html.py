"""One self-contained HTML page: style inside, nothing fetched, readable without colour or script."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("page.css")
_LIGHT, _DARK = (244, 249, 253), (8, 58, 112)  # the ends of the heat map, one hue


def page(title: str, body: str, *, script: str = "") -> str:
    """The page around `body`, which has to be escaped already; no request leaves it, whatever it holds."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if script:  # by its checksum: a script that somebody's text smuggles in does not run
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    end = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n{end}\n</body>\n</html>\n"
    )


def table(caption: str, head: str, body: str, *, kind: str = "") -> str:
    """A table that scrolls by itself where the screen is narrow, by keyboard too."""
    style = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table{style}>'
        f"<caption>{escape(caption)}</caption><thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def heat(value: float) -> str:
    """The style of a heat-map cell for a value in [0, 1]: background, and ink that stands out on it."""
    share = min(max(value, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_LIGHT, _DARK, strict=True))
    # Black or white: on any colour one of them has a contrast of 4.5 or more, no softer pair has.
    ink = "#ffffff" if contrast((255, 255, 255), (red, green, blue)) >= 4.5 else "#000000"
    return f"background:#{red:02x}{green:02x}{blue:02x};color:{ink}"


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2)."""
    dark, light = sorted(_luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: tuple[int, int, int]) -> float:
    shares = [value / 255 for value in colour]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
