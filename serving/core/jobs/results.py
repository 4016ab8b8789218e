"""Job results as one streamed file, in bounded memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from canvas_fm.inference.embed.store.embedding_store import Embeddings

_PIECE = 2**20
_ROWS = 4096


def npy_of(embeddings: Embeddings) -> tuple[int, Iterator[bytes]]:
    """Length and bytes of the `.npy` of all vectors, rows as the points; every chunk is verified."""
    about = {"descr": "<f4", "fortran_order": False, "shape": embeddings.whole_shape}
    sink = _Sink()
    np.lib.format.write_array_header_1_0(sink, about)
    header = sink.taken()
    row_bytes = 4 * int(np.prod(embeddings.whole_shape[1:]))
    step = max(1, _ROWS * 384 * 4 // row_bytes)

    def pieces() -> Iterator[bytes]:
        yield header
        for first in range(0, len(embeddings), step):
            yield embeddings.read(slice(first, first + step)).astype("<f4", copy=False).tobytes()

    return len(header) + len(embeddings) * row_bytes, pieces()


def zip_of(folder: Path) -> Iterator[bytes]:
    """Bytes of an uncompressed `.zip` of the folder."""
    sink = _Sink()
    with zipfile.ZipFile(cast(IO[bytes], sink), "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder.parent).as_posix()
            with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    yield sink.taken()
    yield sink.taken()


class _Sink:
    """A write-only file, drained while it is written."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
