"""Neuroglancer links: the viewer's state as the part of an address behind `#!`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

from canvas_fm.errors import CanvasError

# A link by itself, in quotes, or in the lines of a shortcut (`URL=`).
_LINK = re.compile(
    r"""^\s*(?:URL=)?["'<]?(https?://[^\s#]+)(?:#!?(.*?))?[">]?\s*$""", re.MULTILINE | re.IGNORECASE
)
_JSON = re.compile(r"\s*(\{|\[\s*[\[\]{\"\d])")
# Strings of either quote, and the underscore that stands for a comma outside of them.
_TOKEN = re.compile(r"""("(?:\\.|[^"\\])*")|'((?:\\.|[^'\\])*)'|_""", re.DOTALL)
_SAVE = "open it in the viewer and save its state ({} in the top bar, Download)"


def state_in_link(path: Path, text: str) -> str | None:
    """The JSON text of the state that a link carries; None where the text is no link.

    Raises CanvasError for a link that only says where a state lies: nothing is fetched.
    """
    link = None if _JSON.match(text) else _LINK.search(text)
    if link is None:
        return None
    state = unquote(link[2] or "").strip()
    if state.startswith("{"):
        state = _TOKEN.sub(_as_json, state)
        try:
            json.loads(state)
        except ValueError as problem:
            raise CanvasError(
                f"{path} holds a link whose state cannot be read ({problem}): was it cut? Copy it again"
            ) from problem
        return state
    where = f"to a state at {state}" if state else "without a state"
    raise CanvasError(f"{path} holds a link {where}, and nothing is fetched; {_SAVE}")


def _as_json(token: re.Match[str]) -> str:
    """A token of the viewer's short JSON, in which ' stands for " and _ for a comma, as one of JSON."""
    if token[1] is not None:
        return token[1]
    if token[2] is None:
        return ","
    body = re.sub(r"""\\'|(\\.)|(")""", lambda part: part[1] or ('\\"' if part[2] else "'"), token[2])
    return f'"{body}"'
