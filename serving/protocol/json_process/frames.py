"""Parsed bodies on their way between two processes, in frames none of which takes long to read.

Numbers in lists of lists of one length travel as one array; other long lists and texts in pieces, and a long
text stays in pieces: to join 32 MB takes 50 ms. The frames are those of `marshal`, which holds values and no
code, each after its length.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from pydantic import BaseModel

from serving.protocol import request_options
from serving.protocol.errors import Refusal

ITEMS = 4096  # of a list, in a frame
MOST_RAGGED = 100_000  # rows of different lengths
STEP = 2**20  # bytes that are read at a time
CHARACTERS = 2**20  # of a text, in a frame
LONG = ("base64", "input", "points_csv")  # fields whose texts may have more
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class LongText:
    """A text in pieces of CHARACTERS, the last one shorter."""

    pieces: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(self.pieces)


def pieces_of(text: str | LongText) -> Iterator[str]:
    """A text in pieces of CHARACTERS, none for an empty one."""
    if isinstance(text, LongText):
        yield from text.pieces
    else:
        for start in range(0, len(text), CHARACTERS):
            yield text[start : start + CHARACTERS]


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


def read_bytes(file: IO[bytes]) -> memoryview:
    """Read the bytes of one `write_bytes`; EOFError at the end."""
    length = file.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        raise EOFError("the other process has ended")
    # Not a bytearray, all of which would be set to zero first, which takes as long as the rest.
    view, at = np.empty(_LENGTH.unpack(length)[0], np.uint8).data, 0
    while at < len(view):
        if not (came := file.readinto(view[at : at + STEP])):  # type: ignore[attr-defined]
            raise EOFError("the other process has ended")
        at += came
    return view


def write_value(file: IO[bytes], value: Any, field: str = LONG[0]) -> None:
    """Write a validated model, or the value of one of its fields.

    Refusal (422) for very many rows of different lengths and for long texts as names, of which no route makes
    anything.
    """
    if isinstance(value, BaseModel):
        names = list(type(value).model_fields)
        write_frame(file, ("model", type(value).__name__, sorted(value.model_fields_set), names))
        for name in names:
            write_value(file, getattr(value, name), name)
    elif isinstance(value, str) and len(value) > CHARACTERS:
        if field not in LONG:
            raise Refusal(422, f"{field} has {len(value)} characters; {CHARACTERS} are the most")
        pieces = list(pieces_of(value))
        write_frame(file, ("text", len(pieces)))
        for piece in pieces:
            write_frame(file, piece)
    elif isinstance(value, list) and value:
        _write_list(file, value, field)
    else:
        write_frame(file, ("plain", value))


def _write_list(file: IO[bytes], value: list[Any], field: str) -> None:
    if isinstance(value[0], float | list) and (array := _array(value)) is not None:
        write_frame(file, ("array", array.shape))
        write_bytes(file, array.tobytes())
    elif isinstance(value[0], list) and any(row and isinstance(row[0], list) for row in value):
        write_frame(file, ("lists", len(value)))
        for each in value:
            write_value(file, each, field)
    else:
        if isinstance(value[0], list) and len(value) > MOST_RAGGED:
            raise Refusal(422, f"{len(value)} rows are of different lengths; all have to have the same")
        batches = list(_batches(value))
        write_frame(file, ("items", len(batches)))
        for items in batches:
            if isinstance(items[0], list):
                write_frame(file, ("rows", [np.array(row, np.float64).tobytes() for row in items]))
            elif isinstance(items[0], str) and len(items[0]) > CHARACTERS:
                write_frame(file, ("text", []))
                write_value(file, items[0], field)
            else:
                write_frame(file, ("items", items))


def _batches(value: list[Any]) -> Iterator[list[Any]]:
    """A list in parts of at most ITEMS, and of CHARACTERS where there are texts; a longer text by itself."""
    start, characters = 0, 0
    for at, item in enumerate(value):
        size = len(item) if isinstance(item, str) else 0
        if at > start and (at - start == ITEMS or characters + size > CHARACTERS):
            yield value[start:at]
            start, characters = at, 0
        characters += size
    yield value[start:]


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
        return getattr(request_options, name).model_construct(set(fields_set), **values)
    if kind == "array":
        return np.frombuffer(read_bytes(file), np.float64).reshape(about[0])
    if kind == "lists":
        return [read_value(file) for _ in range(about[0])]
    if kind == "text":
        return LongText(tuple(read_frame(file) for _ in range(about[0])))
    if kind == "items":
        out: list[Any] = []
        for _ in range(about[0]):
            of, items = read_frame(file)
            if of == "text":
                items = [read_value(file)]
            out += [np.frombuffer(row, np.float64) for row in items] if of == "rows" else items
        return out
    return about[0]
