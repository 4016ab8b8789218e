"""Upload of a model folder to the Hugging Face hub, with its card as README."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from canvas_fm.errors import CanvasError
from canvas_fm.files.hub import hub_endpoint, hub_library, hub_model
from canvas_fm.files.shipped import card_of, find
from canvas_fm.models.folder.model_folder import CONFIG, checked_config, model_name

_HEAD = """---
license: apache-2.0
library_name: canvas-fm
tags: [light-sheet-microscopy, brain, {kind}]
---

"""


class Pushed(NamedTuple):
    """Address that gives exactly what was uploaded, and the page to look at."""

    address: str
    url: str
    files: list[str]


def push(model: str | Path, address: str, *, private: bool = False) -> Pushed:
    """Upload a model folder, or a shipped model by name, to `hf://owner/name`; made where it is not there.

    Every file is verified first. What goes up is the config, its weights, and the model's card (the folder's
    README.md, else the shipped card) as README; the address that comes back names the commit. Raises
    MissingExtra without huggingface-hub, CanvasError where the hub refuses (no login, no right to write).
    """
    repo, revision = hub_model(address)
    if revision is not None:
        raise CanvasError(f"{address} names a revision; give hf://{repo}: a push makes a new one")
    folder = find("model", model)
    config = checked_config(folder)
    files = {name: (folder / name).read_bytes() for name in (CONFIG, *config["weights"])}
    for name, digest in config["weights"].items():
        assert hashlib.sha256(files[name]).hexdigest() == digest
    files["README.md"] = _readme(folder, config["kind"], config["sha256"]).encode()
    library = hub_library()
    api = library.HfApi(endpoint=hub_endpoint())
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        operations = [library.CommitOperationAdd(name, data) for name, data in files.items()]
        message = f"{config['kind']} with sha256 {config['sha256'][:12]}"
        commit = api.create_commit(repo, operations, commit_message=message)
    except Exception as problem:  # its own classes, and those of the HTTP client that it has at the time
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise CanvasError(
            f"{address} was not written ({reason}); log in by `hf auth login` with a token that may write"
        ) from problem
    return Pushed(f"hf://{repo}@{commit.oid}", str(commit.commit_url), list(files))


def _readme(folder: Path, kind: str, sha256: str) -> str:
    written = folder / "README.md"
    if written.is_file():
        return written.read_text(encoding="utf-8")
    name = model_name(folder, sha256, kind)
    card = card_of(folder) or f"# {name}\n\nA model of canvas-fm; sha256 `{sha256}`. No card was written.\n"
    return _HEAD.format(kind=kind) + card
