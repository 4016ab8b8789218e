"""Remote hosts that send too much, too slowly or something else: given up in time, in a sentence."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

from canvas_fm.data.store.remote.pinned_https import Timeouts
from canvas_fm.errors import CanvasError, DamagedStore, Unreachable
from tests.data.stores import foreign, open_remote, sharded
from tests.support.object_store import Objects, reply


def announce(handler, content: bytes) -> None:
    reply(handler, 200, b"", length=10 * 2**30)


def stream(handler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(2000):
        handler.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
    raise AssertionError("125 MB were taken")


@pytest.mark.parametrize("longer", [announce, stream])
def test_a_chunk_that_is_longer_than_it_can_be_is_given_up_while_it_comes(
    objects: Objects, tmp_path: Path, longer: Callable
):
    foreign(tmp_path / "brain.zarr")
    ended: list[str] = []

    def watched(handler, content: bytes) -> None:
        try:
            longer(handler, content)
        finally:
            ended.append(handler.path)

    objects.faults["c/0/0/0"] = watched
    with pytest.raises(DamagedStore, match=r"'c/0/0/0': is longer than the [\d,]+ bytes that it can have"):
        open_remote(objects).read((0, 0, 0), (4, 4, 4))
    assert len([path for _, path, _ in objects.asked if path.endswith("c/0/0/0")]) == 1


def test_endless_metadata_is_given_up(objects: Objects, tmp_path: Path):
    foreign(tmp_path / "brain.zarr")
    objects.faults["/zarr.json"] = announce
    with pytest.raises(DamagedStore, match="longer than"):
        open_remote(objects)


def test_a_shard_whose_index_claims_too_much_is_damaged(objects: Objects, tmp_path: Path):
    sharded(tmp_path / "brain.zarr")
    file = tmp_path / "brain.zarr/c/0/0/0"
    content = bytearray(file.read_bytes())
    index = np.frombuffer(bytes(content[-16 * 8 - 4 : -4]), "<u8").reshape(8, 2).copy()
    index[0] = 0, 200_000
    content = bytearray(300_000) + index.tobytes()
    file.write_bytes(bytes(content) + google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
    with pytest.raises(DamagedStore, match="claims 200,000 bytes"):
        open_remote(objects).read((0, 0, 0), (2, 2, 2))


def test_chunks_that_do_not_fit_in_memory_are_refused_when_it_is_opened(objects: Objects, tmp_path: Path):
    zarr.create_array(tmp_path / "brain.zarr", shape=(4096,) * 3, chunks=(1024,) * 3, dtype="uint16")
    with pytest.raises(CanvasError, match="pieces of at most 128 MB"):
        open_remote(objects)


@pytest.mark.parametrize(
    ("status", "said"),
    [(200, "answers 200 for a part"), (206, "another part of the file"), (503, "answers 503")],
)
def test_another_answer_than_the_part_of_a_shard_is_refused(
    objects: Objects, tmp_path: Path, status: int, said: str
):
    sharded(tmp_path / "brain.zarr")
    volume = open_remote(objects, on_bad_chunk="skip")

    def other(handler, content: bytes) -> None:
        if handler.command == "HEAD":
            return reply(handler, 200, content, ETag='"1"')
        low, high = (int(each) for each in handler.headers["Range"].removeprefix("bytes=").split("-"))
        span = f"bytes 0-{high - low}/{len(content)}"  # as long as it was asked for
        reply(handler, status, content[: high - low + 1], ETag='"1"', Content_Range=span)

    objects.faults["c/0/0/0"] = other
    with pytest.raises(Unreachable, match=said):
        volume.read((0, 0, 0), (4, 4, 4))
    assert not volume.bad_chunks


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_that_drips_ends_in_time(objects: Objects, tmp_path: Path, part: str):
    foreign(tmp_path / "brain.zarr")

    def drip(handler, content: bytes) -> None:
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\nX-Slow: " + b"\r\n\r\n" * (part == "body")
        )
        for _ in range(80):
            handler.wfile.write(b"x")
            time.sleep(0.1)

    volume = open_remote(objects)
    objects.faults["c/0/0/0"] = drip
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"no whole answer within 1\.5 s; try again later") as found:
        volume.read((0, 0, 0), (4, 4, 4))
    assert found.value.passing
    assert time.monotonic() - began < 5


def test_an_answer_that_stops_coming_is_given_up(objects: Objects, tmp_path: Path):
    foreign(tmp_path / "brain.zarr")

    def stall(handler, content: bytes) -> None:
        reply(handler, 200, content[:5], length=len(content))
        time.sleep(1)

    volume = open_remote(objects, Timeouts(stall_s=0.2, whole_s=5, attempts=1))
    objects.faults["c/0/0/0"] = stall
    with pytest.raises(Unreachable, match="timed out"):
        volume.read((0, 0, 0), (4, 4, 4))


def test_what_is_packed_on_the_way_is_refused(objects: Objects, tmp_path: Path):
    foreign(tmp_path / "brain.zarr")
    objects.faults["c/0/0/0"] = lambda handler, content: reply(handler, 200, content, Content_Encoding="gzip")
    with pytest.raises(Unreachable, match="encodes it"):
        open_remote(objects).read((0, 0, 0), (4, 4, 4))
