"""Bodies that are more than they seem: gzip that unpacks to too much, JSON of too many values or too deep."""

from __future__ import annotations

import gzip
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.api.middleware.body_limits import Gunzip
from serving.api.middleware.json_limits import JsonScanner
from serving.protocol import npy
from serving.protocol.errors import Refusal
from tests.serving.conftest import JSON, NPY, refused


def test_gzip_is_unpacked(client, crops) -> None:
    plain = client.post("/v1/embed", content=npy.dump(crops), headers=NPY)
    packed = gzip.compress(npy.dump(crops))
    for body in (packed, iter([packed[:100], packed[100:101], packed[101:]])):
        reply = client.post("/v1/embed", content=body, headers=NPY | {"Content-Encoding": "gzip"})
        assert reply.content == plain.content
    asked = json.dumps({"volume": "cube", "points_zyx": [[9, 9, 9]]}).encode()
    reply = client.post(
        "/v1/embed/points", content=gzip.compress(asked), headers=JSON | {"Content-Encoding": "gzip"}
    )
    assert reply.status_code == 200


def test_a_gzip_bomb_is_stopped_where_its_content_is_too_large(client) -> None:
    """100 kB that become 100 MB: refused at 32 MB of JSON, and never more than a step in memory."""
    bomb = gzip.compress(b" " * 100_000_000)
    headers = JSON | {"Content-Encoding": "gzip"}
    refused(client.post("/v1/embed/points", content=bomb, headers=headers), 413, "larger than 32 MB")
    stream = Gunzip()
    stream.feed(bomb)
    assert all(0 < len(stream.next()) <= 2**20 for _ in range(50))


def test_gzip_of_nothing_is_limited_too(start) -> None:
    import zlib

    client = start(max_json_mb=0.05)
    pack = zlib.compressobj(wbits=31)
    empty = b"".join(pack.flush(zlib.Z_FULL_FLUSH) for _ in range(30_000))
    body = pack.compress(b"") + empty
    reply = client.post(
        "/v1/embed/points", content=iter([body, body]), headers=JSON | {"Content-Encoding": "gzip"}
    )
    assert reply.status_code in (400, 413)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"no gzip", "cannot be unpacked"),
        (gzip.compress(b"{}")[:-5], "ends before its end"),
        (gzip.compress(b"{}") + b"more", "something follows"),
        (b"", "ends before its end"),
    ],
    ids=["no gzip", "cut", "too long", "empty"],  # what gzip writes holds the time
)
def test_broken_gzip_is_a_sentence(client, body: bytes, message: str) -> None:
    reply = client.post("/v1/embed/points", content=iter([body]), headers=JSON | {"Content-Encoding": "gzip"})
    refused(reply, 400, message)


@pytest.mark.parametrize("path", ["/embed_json", "/v1/embed/points", "/v1/search"])
def test_json_has_a_depth(client, path: str) -> None:
    for body in (b"[" * 100_000, b'{"a":' * 50_000, b'{"crops": ' + b"[" * 40 + b"]" * 40 + b"}"):
        refused(client.post(path, content=body, headers=JSON), 422, "nested more than 32 deep")


@pytest.mark.parametrize("path", ["/embed_json", "/v1/embed/points", "/v1/search"])
def test_json_has_a_number_of_values(client, path: str) -> None:
    """A few megabytes of empty lists would become half a gigabyte of them."""
    body = b'{"points_zyx": [' + b"[]," * 2_000_000 + b"[]]}"
    refused(client.post(path, content=body, headers=JSON), 413, "more than 2000000 values")


def scan(*pieces: bytes, **limits: int) -> None:
    scanner = JsonScanner(**{"max_values": 100} | limits)
    for piece in pieces:
        scanner.feed(piece)


def test_brackets_in_strings_neither_count_nor_hide() -> None:
    scan(json.dumps({"name": "[" * 1000, "say": '"[[' * 50}).encode())
    for body in (b'["' + b"]" * 40 + b'",' + b"[" * 33, rb'["\"' + b"]" * 40 + b'",' + b"[" * 33):
        for size in (1, 2, 3, 7, len(body)):
            with pytest.raises(Refusal, match="nested"):
                scan(*(body[start : start + size] for start in range(0, len(body), size)))
    scan(b"[" * 32)
    begun = time.process_time()
    scan(b'"' + b'\\"' * 2_000_000)  # a string without an end is no trap
    assert time.process_time() - begun < 5


_JSON = st.recursive(
    st.text() | st.integers(), lambda each: st.lists(each) | st.dictionaries(st.text(), each)
)


@given(_JSON)
@settings(max_examples=60, deadline=None)
def test_however_json_is_cut_the_same_is_counted(value: object) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    whole, cut = JsonScanner(10**6, 10**6, 10**6), JsonScanner(10**6, 10**6, 10**6)
    whole.feed(body)
    for start in range(len(body)):
        cut.feed(body[start : start + 1])
    assert vars(whole) == vars(cut)
    assert (whole._depth, whole._in_string) == (0, False)


@pytest.mark.parametrize("path", ["/embed_json", "/v1/embed/points", "/v1/search"])
def test_json_has_a_number_of_keys(client, path: str) -> None:
    """Each unknown key is an error of its own, and half a million of them took seconds to be put together."""
    body = b"{" + b",".join(b'"k%d":0' % number for number in range(100_000)) + b"}"
    refused(client.post(path, content=body, headers=JSON), 422, "more than 1000 keys")


def test_of_many_wrong_values_one_is_told(client) -> None:
    begun = time.process_time()
    body = json.dumps({"volume": "cube", "points_zyx": [["a"] * 3] * 300_000})
    reply = client.post("/v1/embed/points", content=body, headers=JSON)
    said = refused(reply, 422, "points_zyx.0.0: Input should be a valid number")
    assert "more)" not in said
    assert time.process_time() - begun < 5
