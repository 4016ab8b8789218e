"""`.npy` over the wire, read by hand: nothing is unpickled, cast or allocated on a client's word."""

from __future__ import annotations

import ast
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.protocol.errors import Refusal

MEDIA_TYPE = "application/x-npy"
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 4096
_KINDS = {"u2": "uint16", "f4": "float32"}


@dataclass(frozen=True)
class Header:
    """What a `.npy` says of itself: `offset` is where its values begin."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def total(self) -> int:
        """Bytes of the whole file, header included."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_header(data: bytes | bytearray) -> Header | None:
    """The header at the front of `data`; None as long as it is not all there.

    Raises Refusal: 400 for what is no `.npy`, 422 for an array of anything but uint16 or float32.
    """
    start = bytes(data[:12])
    if not _MAGIC.startswith(start[:6]):
        raise Refusal(
            400, "the body is no .npy file: it does not begin with \\x93NUMPY; write it with numpy.save"
        )
    if len(start) < 12:
        return None
    if start[6] not in (1, 2, 3):
        raise Refusal(400, f"the .npy is of version {start[6]}.{start[7]}; versions 1 to 3 are known")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    if length > _LONGEST_HEADER:
        raise Refusal(400, f"the .npy header is {length} bytes long; {_LONGEST_HEADER} are the most")
    offset = 8 + width + length
    if len(data) < offset:
        return None
    return _understood(bytes(data[8 + width : offset]), offset)


def _understood(text: bytes, offset: int) -> Header:
    try:
        said = ast.literal_eval(text.decode("utf-8"))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as problem:
        raise Refusal(400, "the .npy header cannot be read; write it with numpy.save") from problem
    if not isinstance(said, dict) or set(said) != {"descr", "fortran_order", "shape"}:
        raise Refusal(
            400, "the .npy header does not hold descr, fortran_order and shape; write it with numpy.save"
        )
    shape, fortran = said["shape"], said["fortran_order"]
    if not isinstance(fortran, bool) or not isinstance(shape, tuple) or len(shape) > 32:
        raise Refusal(400, "the .npy header is malformed; write it with numpy.save")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise Refusal(
            400, f"the .npy header gives the shape {str(shape)[:100]}; sizes are whole numbers from 0 up"
        )
    return Header(_dtype(said["descr"]), shape, fortran, offset)


def _dtype(descr: Any) -> np.dtype:
    wanted = "send float32 in [0, 1], or uint16 together with ?window=LO,HI"
    if not isinstance(descr, str):
        raise Refusal(422, f"the array is structured; {wanted}")
    if descr[:1] in "<>" and descr[1:] in _KINDS:
        return np.dtype(descr)
    if "O" in descr:
        raise Refusal(422, f"the array holds Python objects, which are never unpickled here; {wanted}")
    raise Refusal(422, f"the array is of type {_name(descr)}; {wanted}")


def _name(descr: str) -> str:
    """`float64` for `<f8`."""
    try:
        return str(np.dtype(descr)) if descr[1:2] in "biufc" else repr(descr[:20])
    except (TypeError, ValueError):
        return repr(descr[:20])


def read_values(data: bytes | bytearray, header: Header) -> np.ndarray:
    """The array, sharing memory with `data`, whose length has to be what the header promises (400)."""
    if len(data) != header.total:
        raise Refusal(
            400,
            f"the .npy promises {header.total} bytes for shape {header.shape}; {len(data)} bytes were sent",
        )
    flat = np.frombuffer(data, dtype=header.dtype, offset=header.offset)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def dump(array: np.ndarray) -> bytes:
    """The bytes that numpy.save would write."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
