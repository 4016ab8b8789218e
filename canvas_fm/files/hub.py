"""Model folders from the Hugging Face hub or a web server, fetched once into the user's cache.

Only a config, safetensors weights and texts are taken, and each weight file has to have the sha256 that the
config states before the folder is there; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from canvas_fm.errors import CanvasError, MissingExtra

LARGEST = 4 * 2**30  # bytes of a model, packed and unpacked
_HF = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_ZIP = re.compile(r"(https?):/{1,2}([^#]+?/([^/#?]+)\.zip(?:\?[^#]*)?)(?:#sha256=([0-9a-fA-F]{64}))?")
_FILES = re.compile(r"config\.json|[\w-]+\.safetensors|README\.md|LICENSE(\.\w+)?")
_PATTERNS = ["config.json", "*.safetensors", "README.md", "LICENSE*"]
_SECONDS = 30.0  # without a byte


class HubModel(NamedTuple):
    """`hf://owner/name[@revision]`."""

    repo: str
    revision: str | None


class ZipModel(NamedTuple):
    """`https://host/name.zip#sha256=HEX`."""

    url: str
    name: str
    sha256: str


def hub_model(address: str) -> HubModel:
    """Repository and revision of an `hf://` address; CanvasError for another form."""
    if (match := _HF.fullmatch(address)) is None:
        raise CanvasError(
            f"{address!r} is no model on a hub; it looks like hf://owner/name or hf://owner/name@v1"
        )
    return HubModel(match[1], match[2])


def _zip_parts(address: str) -> ZipModel:
    match = _ZIP.fullmatch(address)
    if match is None or match[4] is None:
        raise CanvasError(
            f"{address!r} is no model's address; it looks like https://host/model.zip#sha256=HEX, of the zip "
            "file, or hf://owner/name"
        )
    return ZipModel(f"{match[1]}://{match[2]}", match[3], match[4].lower())


def address_name(address: str) -> str:
    """Name of the model at an address: that of the repository, or of the zip file."""
    if address.startswith("hf:"):
        return hub_model(address).repo.partition("/")[2]
    return _zip_parts(address).name


def fetch(address: str) -> Path:
    """Folder of the model at an address: from the cache, else downloaded and verified.

    An address is fetched once, and needs no network afterwards; another revision is another address. Raises
    CanvasError where nothing answers, where the sha256 is another, and for anything that is no model folder.
    """
    parts = hub_model(address) if address.startswith("hf:") else _zip_parts(address)
    key = " ".join(map(str, parts))
    home = cache_folder() / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = home / address_name(address)
    if folder.is_dir():
        return folder
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".") as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        if isinstance(parts, HubModel):
            _from_hub(new, parts)
        else:
            _from_zip(new, parts)
        _verify(new, address)
        try:
            new.replace(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    return folder


def cache_folder() -> Path:
    """Cache folder of fetched models: `canvas-fm/models` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "canvas-fm" / "models"
    except RuntimeError as problem:  # no home
        raise CanvasError("there is no home folder for fetched models; set XDG_CACHE_HOME") from problem


def hub_library() -> Any:
    """Import huggingface_hub, or say which extra brings it."""
    try:
        import huggingface_hub
    except ImportError as problem:
        raise MissingExtra("huggingface-hub", "hub", "hf:// addresses") from problem
    return huggingface_hub


def hub_endpoint() -> str | None:
    """Address of the hub where it is another than huggingface.co: `HF_ENDPOINT`."""
    return os.environ.get("HF_ENDPOINT") or None


def _from_hub(folder: Path, model: HubModel) -> None:
    repo, revision = model
    library = hub_library()
    try:
        library.snapshot_download(
            repo,
            revision=revision,
            local_dir=folder,
            allow_patterns=_PATTERNS,
            endpoint=hub_endpoint(),
        )
    except Exception as problem:  # its own classes, and those of the HTTP client that it has at the time
        at = "" if revision is None else f"@{revision}"
        raise CanvasError(
            f"hf://{repo}{at} could not be fetched ({_first_line(problem)}); check the name and the network "
            "(private models: hf auth login). What was fetched once needs no network"
        ) from problem
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's notes


def _from_zip(folder: Path, model: ZipModel) -> None:
    url, sha256 = model.url, model.sha256
    packed = folder.parent / "packed.zip"
    _download(url, packed)
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise CanvasError(f"{url} has the sha256 {digest}; the address states {sha256}: it was not used")
    try:
        with zipfile.ZipFile(packed) as archive:
            _unpack(archive, folder, url)
    except zipfile.BadZipFile as problem:
        raise CanvasError(f"{url} is no zip file: {problem}") from problem
    packed.unlink()


def _unpack(archive: zipfile.ZipFile, folder: Path, url: str) -> None:
    """Write the files of a model, whatever folder of the archive they lie in; their own names alone count."""
    left = LARGEST
    taken = [each for each in archive.infolist() if _FILES.fullmatch(each.filename.rpartition("/")[2])]
    if len({each.filename.rpartition("/")[2] for each in taken}) < len(taken):
        raise CanvasError(f"{url} holds several models; pack one folder with its config.json and weights")
    for each in taken:
        with archive.open(each) as source, (folder / each.filename.rpartition("/")[2]).open("xb") as target:
            while part := source.read(2**20):
                left -= len(part)
                if left < 0:
                    raise CanvasError(
                        f"{url} unpacks to more than {LARGEST >> 30} GiB; that is no model of ours"
                    )
                target.write(part)


def _download(url: str, target: Path) -> None:
    import httpx

    try:
        with (
            httpx.stream("GET", url, follow_redirects=True, timeout=_SECONDS) as reply,
            target.open("wb") as file,
        ):
            reply.raise_for_status()
            size = 0
            for part in reply.iter_bytes():
                size += len(part)
                if size > LARGEST:
                    raise CanvasError(f"{url} is larger than {LARGEST >> 30} GiB; that is no model of ours")
                file.write(part)
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        raise CanvasError(
            f"{url} could not be fetched ({_first_line(problem)}); what was fetched once needs no network"
        ) from problem


def _verify(folder: Path, address: str) -> None:
    """Raise CanvasError unless the folder holds a config and the weights that it states, to the byte."""
    config = folder / "config.json"
    try:
        weights = json.loads(config.read_bytes())["weights"]
        stated = {str(name): str(digest) for name, digest in weights.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise CanvasError(
            f"{address} holds no model of canvas-fm: a config.json that names its weights was expected"
        ) from problem
    for name, digest in stated.items():
        path = folder / name
        if not (_FILES.fullmatch(name) and path.is_file()):
            raise CanvasError(f"{address} lacks the weights {name!r} that its config.json names")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise CanvasError(f"{address}: {name} is damaged: its sha256 is not the one in config.json")


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
