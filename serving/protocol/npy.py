"""`.npy` over the wire by numpy's header reader: nothing is unpickled, cast or allocated early."""

from __future__ import annotations

import io
import math
import tokenize
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as numpy_format

from serving.protocol.errors import Refusal

MEDIA_TYPE = "application/x-npy"
_MAX_HEADER_BYTES = 4096
# Version 3 is version 2 with UTF-8 in it, which no header of a plain type has.
_READERS = {
    1: numpy_format.read_array_header_1_0,
    2: numpy_format.read_array_header_2_0,
    3: numpy_format.read_array_header_2_0,
}
_UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError)


@dataclass(frozen=True)
class Header:
    """dtype and shape of a `.npy`; `offset` is where its values begin."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def total(self) -> int:
        """Bytes of the whole file with header."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_header(data: bytes | bytearray) -> Header | None:
    """Parse the header at the front of `data`; None if it is incomplete.

    Raises Refusal: 400 for what is no `.npy`, 422 for an array of anything but uint16 or float32.
    """
    start = bytes(data[:12])
    if not numpy_format.MAGIC_PREFIX.startswith(start[:6]):
        raise Refusal(
            400, "the body is no .npy file: it does not begin with \\x93NUMPY; write it with numpy.save"
        )
    if len(start) < 12:
        return None
    major, minor = start[6:8]
    if major not in _READERS:
        raise Refusal(400, f"the .npy is of version {major}.{minor}; versions 1 to 3 are known")
    width = 2 if major == 1 else 4
    length = int.from_bytes(start[8 : 8 + width], "little")  # known before numpy reads so much
    if length > _MAX_HEADER_BYTES:
        raise Refusal(400, f"the .npy header is {length} bytes long; {_MAX_HEADER_BYTES} are the most")
    offset = 8 + width + length
    if len(data) < offset:
        return None
    file = io.BytesIO(data[8:offset])
    if b"\\" in file.getvalue():  # of which Python's parser warns; no plain type or shape has one
        raise Refusal(400, "the .npy header cannot be read (it holds a backslash); use numpy.save")
    try:
        shape, fortran, dtype = _READERS[major](file, max_header_size=_MAX_HEADER_BYTES)
    except _UNREADABLE as problem:
        raise Refusal(400, f"the .npy header cannot be read ({problem!s:.100}); use numpy.save") from problem
    if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 32:
        raise Refusal(
            400, f"the .npy header gives the shape {str(shape)[:100]}; sizes are whole numbers from 0 up"
        )
    _check_dtype(dtype)
    return Header(dtype, shape, fortran, offset)


def _check_dtype(dtype: np.dtype) -> None:
    hint = "send float32 in [0, 1], or uint16 together with ?window=LO,HI"
    if dtype.hasobject:
        raise Refusal(422, f"the array holds Python objects, which are never unpickled here; {hint}")
    if dtype.fields is not None or dtype.subdtype is not None:
        raise Refusal(422, f"the array is structured; {hint}")
    if dtype.newbyteorder("=") not in (np.uint16, np.float32):
        raise Refusal(422, f"the array is of type {dtype!s:.20}; {hint}")


def read_values(data: bytes | bytearray, header: Header) -> np.ndarray:
    """The array as a view of `data`, whose length must match the header (400)."""
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
