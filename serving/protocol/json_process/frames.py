"""Parsed bodies on their way between two processes, in frames none of which takes long to read.

Numbers in lists of lists of one length travel as one array; other long lists and texts in pieces. The frames
are those of `marshal`, which holds values and no code, each after its length.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from pydantic import BaseModel

from serving.protocol import requests
from serving.protocol.errors import Refusal

ITEMS = 4096  # of a list, in a frame
MOST_RAGGED = 100_000  # rows of different lengths
STEP = 2**20  # bytes that are read at a time
CHARACTERS = 2**20  # of a text, in a frame
_LENGTH = struct.Struct("<Q")


def write_frame(file: IO[bytes], value: Any) -> None:
    """Write one value that `marshal` knows."""
    write_bytes(file, marshal.dumps(value))


def read_frame(file: IO[bytes]) -> Any:
    """The next value; EOFError at the end."""
    return marshal.loads(read_bytes(file))


def write_bytes(file: IO[bytes], data: bytes | memoryview) -> None:
    """Write bytes as they are: marshal would copy them several times."""
    file.write(_LENGTH.pack(len(data)))
    file.write(data)


def read_bytes(file: IO[bytes]) -> bytearray:
    """Read the bytes of one `write_bytes`; EOFError at the end."""
    length = file.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        raise EOFError("the other process has ended")
    data = bytearray(_LENGTH.unpack(length)[0])
    view, at = memoryview(data), 0
    while at < len(data):
        if not (came := file.readinto(view[at : at + STEP])):  # type: ignore[attr-defined]
            raise EOFError("the other process has ended")
        at += came
    return data


def write_value(file: IO[bytes], value: Any) -> None:
    """Write a validated model, or the value of one of its fields.

    Refusal (422) for very many rows of different lengths, of which no route makes anything.
    """
    if isinstance(value, BaseModel):
        names = list(type(value).model_fields)
        write_frame(file, ("model", type(value).__name__, sorted(value.model_fields_set), names))
        for name in names:
            write_value(file, getattr(value, name))
    elif isinstance(value, str) and len(value) > CHARACTERS:
        starts = range(0, len(value), CHARACTERS)
        write_frame(file, ("text", len(starts)))
        for start in starts:
            write_frame(file, value[start : start + CHARACTERS])
    elif isinstance(value, list) and value:
        _write_list(file, value)
    else:
        write_frame(file, ("plain", value))


def _write_list(file: IO[bytes], value: list[Any]) -> None:
    if isinstance(value[0], float | list) and (array := _array(value)) is not None:
        write_frame(file, ("array", array.shape))
        write_bytes(file, array.tobytes())
    elif isinstance(value[0], list) and any(row and isinstance(row[0], list) for row in value):
        write_frame(file, ("lists", len(value)))
        for each in value:
            write_value(file, each)
    else:
        if isinstance(value[0], list) and len(value) > MOST_RAGGED:
            raise Refusal(422, f"{len(value)} rows are of different lengths; all have to have the same")
        starts = range(0, len(value), ITEMS)
        write_frame(file, ("items", len(starts)))
        for start in starts:
            items = value[start : start + ITEMS]
            if rows := isinstance(items[0], list):
                items = [np.array(row, np.float64).tobytes() for row in items]
            write_frame(file, (rows, items))


def _array(value: Sequence[Any]) -> np.ndarray | None:
    try:
        return np.array(value, np.float64)
    except ValueError:  # rows of several lengths
        return None


def read_value(file: IO[bytes]) -> Any:
    """Read the value of one `write_value`; lists of numbers are arrays."""
    kind, *about = read_frame(file)
    if kind == "model":
        name, fields_set, names = about
        values = {field: read_value(file) for field in names}
        return getattr(requests, name).model_construct(set(fields_set), **values)
    if kind == "array":
        return np.frombuffer(read_bytes(file), np.float64).reshape(about[0])
    if kind == "lists":
        return [read_value(file) for _ in range(about[0])]
    if kind == "text":
        return "".join([read_frame(file) for _ in range(about[0])])
    if kind == "items":
        out: list[Any] = []
        for _ in range(about[0]):
            rows, items = read_frame(file)
            out += [np.frombuffer(row, np.float64) for row in items] if rows else items
        return out
    return about[0]
