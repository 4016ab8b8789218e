"""Shipped recipes, model cards, weights and samples, by path or by name."""

from __future__ import annotations

import re
from pathlib import Path

from canvas_fm.errors import CanvasError
from canvas_fm.files.hub import fetch

_PACKAGE = Path(__file__).parents[1]
_CHECKOUT = _PACKAGE.parent
# In a wheel these lie inside the package, in a checkout at the top.
_ROOTS = {
    "recipe": (_PACKAGE / "_recipes", _CHECKOUT / "recipes"),
    "card": (_PACKAGE / "_cards", _CHECKOUT / "model_cards"),
    "model": (_PACKAGE / "weights",),
    # Found by the sha256 that refiners of earlier versions recorded.
    "older model": (_PACKAGE / "weights" / "_older",),
    "sample": (_PACKAGE / "data" / "dataset" / "samples",),
}
_SUFFIX = {"recipe": ".yaml", "card": ".md", "model": "", "older model": "", "sample": ""}
SAMPLE = "sample:"
_ADDRESS = re.compile(r"(hf|https?):/{1,2}\S")
DEFAULT_ENCODER = "base-5"  # of what is shipped the first choice, wherever an encoder is picked for the user
COUNTS = _PACKAGE / "weights" / "_counts.json"  # counts of shipped models on held-out brains
RECALLS = _PACKAGE / "weights" / "_recalls.json"  # of the shipped detectors on held-out brains


def shipped(kind: str) -> dict[str, Path]:
    """Names and paths of shipped files of a kind: `recipe`, `card`, `model` or `sample`."""
    paths: dict[str, Path] = {}
    for root in _ROOTS[kind]:
        for path in sorted(root.glob(f"*{_SUFFIX[kind]}")) if root.is_dir() else []:
            if not path.name.startswith((".", "_", "README")):
                paths.setdefault(path.name.removesuffix(_SUFFIX[kind]), path)
    return paths


def catalogue() -> dict[str, dict[str, str]]:
    """Shipped files by kind (`model`, `recipe`, `sample`) and name, with a one-line description."""
    cards = shipped("card")
    models = {name: _first_line(cards.get(name)) for name in shipped("model")}
    recipes = {name: _first_line(path) for name, path in shipped("recipe").items()}
    samples = {f"{SAMPLE}{name}": _first_line(path / "README.md") for name, path in shipped("sample").items()}
    return {"model": models, "recipe": recipes, "sample": samples}


def _first_line(path: Path | None) -> str:
    """First sentence line of a text, after a page's title, without comment marks."""
    if path is None or not path.is_file():
        return ""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return next(
        (line.lstrip("# ") for line in lines if line and not (path.suffix == ".md" and line[0] == "#")), ""
    )


def card_of(folder: str | Path) -> str | None:
    """Card of a shipped model's folder, if any."""
    real = Path(folder).resolve()
    for name, path in shipped("model").items():
        if path.resolve() == real and name in (cards := shipped("card")):
            return cards[name].read_text(encoding="utf-8")
    return None


def find(kind: str, reference: str | Path) -> Path:
    """The path if it exists, else the shipped file of that name; a model may be an address (`files.hub`).

    A model is a folder, a recipe or card a file: a folder `phantom` does not hide the recipe of that name.
    """
    if kind == "model" and is_address(reference):
        return fetch(str(reference))
    path = Path(reference)
    if kind != "sample" and (path.is_dir() if kind == "model" else path.is_file()):
        return path
    known = shipped(kind)
    name = str(reference).removesuffix(_SUFFIX[kind]) if _SUFFIX[kind] else str(reference)
    if name in known:
        return known[name]
    listing = ", ".join(known) or "none in this version"
    if path.exists():
        raise CanvasError(
            f"{reference} is a {'file' if path.is_file() else 'folder'}; a {kind} is "
            f"{'a folder' if kind == 'model' else 'a file'}"
        )
    raise CanvasError(
        f"no {kind} at {str(reference)!r}, and none is shipped by that name; shipped: {listing}"
    )


def is_address(reference: object) -> bool:
    """Whether a model is named by an address instead of a path or shipped name."""
    return isinstance(reference, str | Path) and _ADDRESS.match(str(reference)) is not None


def sample_file(path: str | Path, file: str) -> Path:
    """The path, or for `sample:NAME` that file of the shipped sample."""
    name = str(path)
    return find("sample", name.removeprefix(SAMPLE)) / file if name.startswith(SAMPLE) else Path(path)
