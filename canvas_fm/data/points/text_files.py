"""Text of a points file: UTF-8 or UTF-16 by its byte-order mark, unpacked where it is gzip."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from canvas_fm.data.store.lfs_pointers import POINTER_BYTES, pointer_in
from canvas_fm.errors import CanvasError

GZIP = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LINK = "a link; call one of Neuroglancer that carries its state .json, of others download the file"
# First bytes of what is sometimes saved under the name of a table.
_OTHERS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; call a workbook .xlsx, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook of the old format; save the sheet as CSV",
    b"BZh": "compressed with bzip2; unpack it, or use gzip",
    b"\xfd7zXZ": "compressed with xz; unpack it, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard; unpack it, or use gzip",
    b"\x89HDF": "an HDF5 file; write its table as CSV",
    b"PAR1\x15": "a Parquet file; call it .parquet",
    b"\x93NUMPY": "a numpy array; call it .npy",
    b"<?xml": "XML; call it .xml",
    b"[{": "JSON; call it .json",
    b'{"': "JSON; call it .json",
    b"<!DOCTYPE": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"http://": _LINK,
    b"https://": _LINK,
}


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Context manager: the file as text with its line ends as they are; CanvasError if it is no text."""
    try:
        with _unpacked(path) as file:
            yield io.TextIOWrapper(cast(IO[bytes], file), encoding=_encoding(path), newline="")
    except UnicodeDecodeError as problem:
        raise CanvasError(f"{path} is not UTF-8 text ({problem.reason}); save it as UTF-8") from problem
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise CanvasError(f"{path} is a damaged or cut gzip file: {problem}") from problem


@contextmanager
def create_text(path: Path, *, packed: bool) -> Iterator[io.TextIOWrapper]:
    """Context manager: a new UTF-8 file to write, gzip if `packed`; the same text gives the same bytes."""
    with path.open("wb") as raw:
        binary = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if packed else raw
        with binary, io.TextIOWrapper(cast(IO[bytes], binary), encoding="utf-8", newline="") as file:
            yield file


def _unpacked(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as file:
        head = file.read(8)
    return gzip.GzipFile(path, "rb") if head.startswith(GZIP) else path.open("rb")


def _encoding(path: Path) -> str:
    with _unpacked(path) as file:
        head = file.read(POINTER_BYTES)
    if (pointer := pointer_in(head)) is not None:
        raise CanvasError(f"{path} {pointer[0]}; {pointer[1]}")
    for signature, kind in _OTHERS.items():
        if head.startswith(signature):
            raise CanvasError(f"{path} is no text, it is {kind}")
    if head.startswith(_UTF16):
        return "utf-16"
    if b"\0" in head:
        raise CanvasError(f"{path} is not UTF-8 text (it holds zero bytes); save it as UTF-8")
    return "utf-8-sig"
