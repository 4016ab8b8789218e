"""XML element by element in bounded memory; document types, and with them entities, are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import escape

from canvas_fm.errors import CanvasError

_CHUNK = 1 << 20
_BIG_DATA_VIEWER = "; BigDataViewer's description of an image: canvas-fm convert takes the voxels it names"


def root_of(path: Path) -> str:
    """Name of the root element, empty where the file has none."""
    names: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: names.append(name)
    with path.open("rb") as file:
        while not names and (piece := file.read(4096)):
            try:
                parser.Parse(piece, False)
            except expat.ExpatError:
                break
    return names[0] if names else ""


def parse(
    path: Path,
    root: str,
    kind: str,
    start: Callable[[str, Mapping[str, str]], None],
    end: Callable[[str], None],
    data: Callable[[str], None],
) -> None:
    """Iterate over the elements of an XML; a document type, and with it every entity, is refused."""
    seen_root = False

    def begin(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal seen_root
        if not seen_root and name != root:
            raise CanvasError(
                f"{path} is not {kind}: its root is <{escape(name)}>, expected <{root}>"
                + (_BIG_DATA_VIEWER if name == "SpimData" else "")
            )
        seen_root = True
        start(name, attributes)

    def refuse(*_: object) -> None:
        raise CanvasError(
            f"{path} declares a document type; XML with entities is not read: remove its <!DOCTYPE …>"
        )

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                parser.Parse(piece, False)
            parser.Parse(b"", True)
    except expat.ExpatError as problem:
        raise CanvasError(f"{path} is not readable as XML: {problem}") from problem


def number(path: Path, name: str, text: str | None) -> float:
    """A finite number; CanvasError with the element's or attribute's name for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CanvasError(f"{path}: {name} is {text!r}; expected a finite number")
    return value
