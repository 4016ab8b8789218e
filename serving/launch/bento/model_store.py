"""BentoML's model store: model folders between training and Bento."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import find
from canvas_fm.models.load_model import load

DEFAULT_NAME = "canvas-fm"
_VERSION = 40  # characters of the sha256: a version in the store has at most 63
_TAG = re.compile(r"[a-z0-9]([-._a-z0-9]{0,61}[a-z0-9])?(:[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")


def put(model: str | Path, name: str = DEFAULT_NAME) -> str:
    """Copy an encoder's folder into the store; returns its tag, `NAME:VERSION`.

    The version is the front of the model's sha256, so the same model twice is there once. Raises CanvasError
    for what is no whole encoder, and for a name that is none.
    """
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    import bentoml

    encoder = load(model, kind="encoder")
    tag = f"{_checked(name, version=False)}:{encoder.sha256[:_VERSION]}"
    try:
        bentoml.models.get(tag)
    except bentoml.exceptions.NotFound:
        with bentoml.models.create(tag, labels={"sha256": encoder.sha256}) as stored:
            shutil.copytree(find("model", model), stored.path_of(encoder.name))
    get(tag)
    return tag


def get(tag: str) -> Path:
    """Folder of a stored encoder, verified; CanvasError if it was changed."""
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    import bentoml

    try:
        stored = bentoml.models.get(_checked(tag, version=True))
    except bentoml.exceptions.NotFound as problem:
        known = sorted(str(each.tag) for each in bentoml.models.list())
        raise CanvasError(
            f"the store holds no model {tag!r}; it holds: {', '.join(known) or 'none'}"
        ) from problem
    return folder_in(Path(stored.path), stored.info.labels.get("sha256"))


def folder_in(stored: Path, sha256: str | None) -> Path:
    """Encoder folder of a stored model, verified against the identity on its label."""
    folders = [path for path in stored.iterdir() if (path / "config.json").is_file()]
    if len(folders) != 1 or sha256 is None:
        raise CanvasError(f"{stored} was not made by `canvas-fm store`; put the model in anew")
    actual = load(folders[0], kind="encoder").sha256
    if actual != sha256:
        raise CanvasError(f"{folders[0]} has the sha256 {actual}, its label says {sha256}; put it in anew")
    return folders[0]


def _checked(tag: str, *, version: bool) -> str:
    if not _TAG.fullmatch(tag) or (":" in tag and not version):
        form = "NAME or NAME:VERSION" if version else "lower-case letters, digits, '-', '_' and '.'"
        raise CanvasError(f"{tag!r} is no name in the model store; it looks like {form}")
    return tag
