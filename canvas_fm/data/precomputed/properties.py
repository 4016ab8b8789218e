"""Columns of points as properties of precomputed annotations: numbers of 32 bits, text as enumerations."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)
_NAME = re.compile("[a-z][a-zA-Z0-9_]*")  # what the viewer takes as a property's name
_WHOLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
_MOST_TEXTS = 1 << 16
_BLOCK = 1 << 16  # rows that are sorted at once: sorting ten million texts takes a gigabyte


@dataclass(frozen=True)
class Property:
    """One property: its entry in `info`, and the value of each point."""

    declared: dict[str, Any]
    values: np.ndarray


def properties_of(columns: Mapping[str, np.ndarray], where: Path) -> list[Property]:
    """Properties in the order in which they lie in a file; a warning names columns that cannot be held.

    Those are whole numbers beyond 32 bits, more than 65,536 different texts, and names that the viewer does
    not take.
    """
    properties = {name: _property(name, values) for name, values in columns.items()}
    if dropped := [name for name, kept in properties.items() if kept is None]:
        _log.warning("%s cannot hold the columns %s; they were left out", where, ", ".join(dropped))
    kept = [each for each in properties.values() if each is not None]
    return sorted(kept, key=lambda each: -each.values.dtype.itemsize)


def row_type(properties: list[Property]) -> np.dtype[Any]:
    """One annotation without its id: position x, y, z, then the properties, padded to 4 bytes."""
    fields: list[Any] = [("position", "<f4", (3,))]
    fields += [(f"p{number}", each.values.dtype) for number, each in enumerate(properties)]
    used = sum(each.values.dtype.itemsize for each in properties)
    return np.dtype([*fields, *([("pad", f"V{-used % 4}")] if used % 4 else [])])


def _property(name: str, values: np.ndarray) -> Property | None:
    if not _NAME.fullmatch(name):
        return None
    if values.dtype.kind == "f":
        return Property({"id": name, "type": "float32"}, values.astype("<f4"))
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.dtype.kind in "iu":
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        for kind in _WHOLE:
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return Property({"id": name, "type": kind}, values.astype(np.dtype(kind).newbyteorder("<")))
        return None
    if values.dtype.kind not in "UO":
        return None
    texts, codes = _coded(values)
    if len(texts) > _MOST_TEXTS:
        return None
    kind = "uint8" if len(texts) <= 256 else "uint16"
    declared = {"id": name, "type": kind, "enum_values": list(range(len(texts)))}
    return Property(
        declared | {"enum_labels": texts.tolist()}, codes.astype(np.dtype(kind).newbyteorder("<"))
    )


def _coded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different texts, sorted, and the place of each value among them.

    Ends without the values' places where there are more texts than a property can hold.
    """
    texts = np.empty(0, np.str_)
    blocks = []
    for start in range(0, len(values), _BLOCK):
        of_block, places = np.unique(values[start : start + _BLOCK].astype(np.str_), return_inverse=True)
        blocks.append((of_block, places.astype(np.uint16)))
        texts = np.union1d(texts, of_block)
        if len(texts) > _MOST_TEXTS:
            return texts, np.empty(0, np.int64)
    codes = [np.searchsorted(texts, of_block)[places] for of_block, places in blocks]
    return texts, np.concatenate([np.empty(0, np.int64), *codes])
