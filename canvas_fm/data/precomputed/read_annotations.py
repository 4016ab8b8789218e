"""Point annotations as Neuroglancer's precomputed format: a folder with `info` and little-endian chunks."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.formats.neuroglancer import axes_of
from canvas_fm.data.points.tables import PointTable
from canvas_fm.data.precomputed.shards import Sharding, read_shards
from canvas_fm.errors import CanvasError

INFO, KIND = "info", "neuroglancer_annotations_v1"
NAMESPACE = "canvas_fm"  # of what a file states beyond the format
_DTYPES = {"uint8": "<u1", "int8": "<i1", "uint16": "<u2", "int16": "<i2", "uint32": "<u4", "int32": "<i4",
           "float32": "<f4", "uint64": "<u8", "int64": "<i8", "float64": "<f8"}  # fmt: skip
_COLOURS = {"rgb": 3, "rgba": 4}


def read_precomputed(path: Path) -> PointTable:
    """All points of a folder of precomputed annotations, or of its file `info`, by rising id.

    Read from the spatial index, each of whose levels holds other annotations, else from the index by id; both
    may be sharded. Numeric properties become columns, colours and enumerations text. Raises CanvasError for
    other kinds of annotations and files of a length that does not fit.
    """
    folder = path if path.is_dir() else path.parent
    info = _info(folder / INFO)
    names, meta = axes_of(folder, info.get("dimensions"))
    if sorted(names) != ["x", "y", "z"]:
        raise CanvasError(f"{folder}: its dimensions are {names}; expected z, y and x alone")
    row = _row(folder, info.get("properties", []))
    rows = np.concatenate([np.empty(0, row), *_chunks(folder, info, row)])
    rows = rows[np.unique(rows["id"], return_index=True)[1]]
    extension = info.get(NAMESPACE)
    stated = extension.get("points") if isinstance(extension, Mapping) else None
    if isinstance(stated, int) and stated != len(rows):
        raise CanvasError(
            f"{folder} holds {len(rows):,} points and states {stated:,}: files are missing; copy all of it"
        )
    zyx = rows["position"][:, [names.index(axis) for axis in "zyx"]].astype(np.float64) - 0.5
    return PointTable(zyx, _columns(info.get("properties", []), rows), meta)


def is_annotations(folder: Path) -> bool:
    """Whether a folder says that it holds precomputed annotations."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(info, dict) and info.get("@type") == KIND


def _info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, ValueError, RecursionError) as problem:
        raise CanvasError(
            f"{path} cannot be read ({problem}); a folder of points is Neuroglancer's precomputed "
            "annotations, with a file 'info'"
        ) from problem
    kind = info.get("@type") if isinstance(info, dict) else None
    if kind != KIND:
        raise CanvasError(f"{path} says it is {kind!r}; expected precomputed annotations, {KIND!r}")
    if info.get("annotation_type") != "POINT":
        raise CanvasError(
            f"{path} holds annotations of type {info.get('annotation_type')}; only points are read"
        )
    return dict(info)


def _row(folder: Path, properties: Any) -> np.dtype[Any]:
    """One annotation and its id as they lie in a chunk: properties by falling size, padded to 4 bytes."""
    fields: list[tuple[str, str]] = []
    try:
        for number, declared in enumerate(properties):
            kind = declared["type"]
            fields.append((f"p{number}", f"{_COLOURS[kind]}u1" if kind in _COLOURS else _DTYPES[kind]))
    except (TypeError, KeyError) as problem:
        raise CanvasError(f"{folder}: its properties are {properties!r}; one has no known type") from problem
    size = {name: 1 if "u1" in code else np.dtype(code).itemsize for name, code in fields}
    fields.sort(key=lambda field: -size[field[0]])
    used = sum(np.dtype(code).itemsize for _, code in fields)
    padding = [("pad", f"V{-used % 4}")] if used % 4 else []
    return np.dtype([("position", "<f4", (3,)), *fields, *padding, ("id", "<u8")])


def _chunks(folder: Path, info: Mapping[str, Any], row: np.dtype[Any]) -> Iterator[np.ndarray]:
    levels = info.get("spatial") or []
    sources = levels or [info.get("by_id") or {}]
    for source in sources:
        key = source.get("key") if isinstance(source, Mapping) else None
        if not isinstance(key, str) or not (folder / key).resolve().is_relative_to(folder.resolve()):
            raise CanvasError(f"{folder / INFO} names no folder of annotations inside it: {key!r}")
        if not (folder / key).is_dir():
            raise CanvasError(f"{folder} has no folder {key!r}, where its annotations are; copy all of it")
        for place, number, content in _contents(folder / key, source):
            yield _listed(place, content, row) if levels else _single(place, number, content, row)


def _contents(folder: Path, source: Mapping[str, Any]) -> Iterator[tuple[Path, str, bytes]]:
    """File, key and bytes of every chunk of an index."""
    if "sharding" in source:
        sharding = Sharding.of_json(source["sharding"], folder)
        for key, content in read_shards(folder, sharding):
            yield folder, str(key), content
        return
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        yield path, path.name.removesuffix(".gz"), _bytes(path)


def _listed(path: Path, content: bytes, row: np.dtype[Any]) -> np.ndarray:
    """A chunk: their number, then each annotation without its id, then the ids."""
    body = np.dtype([(name, *row.fields[name][:1]) for name in row.names[:-1]])  # type: ignore[index]
    count = int.from_bytes(content[:8], "little")
    if len(content) != 8 + count * (body.itemsize + 8):
        raise CanvasError(
            f"{path} has {len(content):,} bytes, which is not what its count of {count:,} points takes: it "
            "is damaged, or not what `info` describes"
        )
    rows = np.empty(count, row)
    listed = np.frombuffer(content, body, count, 8)
    for name in body.names or ():
        rows[name] = listed[name]
    rows["id"] = np.frombuffer(content, "<u8", count, 8 + count * body.itemsize)
    return rows


def _single(path: Path, stem: str, content: bytes, row: np.dtype[Any]) -> np.ndarray:
    """The annotation of one id, which is its key; what relationships follow is passed over."""
    size = row.itemsize - 8
    if len(content) < size or not stem.isdecimal():
        raise CanvasError(f"{path} is no annotation of {size} bytes that is named by its id")
    return np.frombuffer(content[:size] + int(stem).to_bytes(8, "little"), row)


def _bytes(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise CanvasError(f"{path} is a damaged or cut gzip file: {problem}") from problem


def _columns(properties: list[Mapping[str, Any]], rows: np.ndarray) -> dict[str, np.ndarray]:
    columns = {}
    for number, declared in enumerate(properties):
        values, name = rows[f"p{number}"], str(declared.get("id", number))
        if declared["type"] in _COLOURS:
            columns[name] = np.array(["#" + bytes(value).hex() for value in values], np.str_)
        elif name.lower() not in ("z", "y", "x"):
            values = values.astype(values.dtype.newbyteorder("="))
            columns[name] = _texts(values, declared) if declared.get("enum_labels") else values
    return columns


def _texts(values: np.ndarray, declared: Mapping[str, Any]) -> np.ndarray:
    """The labels of an enumeration's values; a value without a label is left as its number."""
    labels = dict(zip(declared.get("enum_values") or [], declared["enum_labels"], strict=False))
    kinds, codes = np.unique(values, return_inverse=True)
    return np.array([str(labels.get(kind, kind)) for kind in kinds.tolist()], np.str_)[codes]
