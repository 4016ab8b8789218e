"""Reading `.npy` from strangers: what numpy wrote comes back exactly, everything else is a sentence."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.protocol import npy
from serving.protocol.errors import Refusal


def read(data: bytes) -> np.ndarray:
    header = npy.read_header(data)
    assert header is not None
    return npy.read_values(data, header)


def file(descr: str, shape: str = "(1,)", values: bytes = b"", order: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + values


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<f4", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_is_read_back(version: tuple[int, int], dtype: str, order: str) -> None:
    array = np.asarray(np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5), dtype=dtype, order=order)
    saved = io.BytesIO()
    np.lib.format.write_array(saved, array, version=version)
    found = read(saved.getvalue())
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_dump_is_what_numpy_loads() -> None:
    array = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(np.load(io.BytesIO(npy.dump(array)), allow_pickle=False), array)


def test_a_header_in_pieces_is_waited_for() -> None:
    data = npy.dump(np.zeros((2, 3), np.float32))
    offset = len(data) - 24
    assert all(npy.read_header(data[:n]) is None for n in range(offset))
    assert npy.read_header(data[:offset]) == npy.Header(np.dtype("<f4"), (2, 3), False, offset)


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"PK\x03\x04" + bytes(20), 400, "no .npy file"),
        (b"[[0.1, 0.2]]", 400, "no .npy file"),
        (b"\x93NUMPY\x09\x00" + bytes(20), 400, "version 9.0"),
        (b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(20), 400, "header is 4294967295 bytes long"),
        (file("'|O'"), 422, "Python objects, which are never unpickled"),
        (file("[('a', '<f4')]"), 422, "structured"),
        (file("'<f8'"), 422, "of type float64; send float32"),
        (file("'|u1'"), 422, "of type uint8"),
        (file("'|V4'"), 422, "of type"),
        (file("'<f4'", "(-1,)"), 400, "sizes are whole numbers"),
        (file("'<f4'", "(True,)"), 400, "sizes are whole numbers"),
        (file("'<f4'", "[1]"), 400, "cannot be read"),
        (file("'<f4'", "(1,)", order="1"), 400, "cannot be read"),
        (file("__import__('os').system('false')"), 400, "cannot be read"),
        (file("(" * 300), 400, "cannot be read"),
        (file(r"'<f4\O'"), 400, "holds a backslash"),
    ],
)
def test_refusals(data: bytes, status: int, message: str) -> None:
    with pytest.raises(Refusal, match=message) as refusal:
        npy.read_header(data)
    assert refusal.value.status == status


@pytest.mark.parametrize("change", [-1, 1])
def test_the_length_has_to_be_what_the_header_promises(change: int) -> None:
    data = npy.dump(np.zeros((2, 3), np.float32)) + b"0"
    header = npy.read_header(data)
    assert header is not None
    with pytest.raises(Refusal, match="promises 152 bytes") as refusal:
        npy.read_values(data[: header.total + change], header)
    assert refusal.value.status == 400


def test_a_promise_is_not_an_allocation() -> None:
    header = npy.read_header(file("'<f4'", f"({2**62}, {2**62})"))
    assert header is not None
    assert header.total > 2**120
    with pytest.raises(Refusal, match="promises"):
        npy.read_values(b"", header)


# An error but what other tests left to the garbage collector, which Hypothesis calls.
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
@given(st.binary(max_size=60), st.integers(0, 120))
@settings(max_examples=300, deadline=None)
def test_any_damage_is_a_refusal_or_an_array(noise: bytes, place: int) -> None:
    data = bytearray(npy.dump(np.zeros((2, 3), np.float32)))
    data[place : place + len(noise)] = noise
    try:
        header = npy.read_header(data)
        if header is not None:
            npy.read_values(data, header)
    except Refusal:
        pass
