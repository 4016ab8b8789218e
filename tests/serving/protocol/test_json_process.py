"""Large JSON bodies: another process makes of them what this one would, in frames that are read quickly."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from serving.api.bodies import from_base64
from serving.protocol import request_options
from serving.protocol.errors import Refusal
from serving.protocol.json_process.child import digest_of, parse
from serving.protocol.json_process.frames import LongText, read_value, write_value
from serving.protocol.json_process.parser import JsonParser, is_small

ROWS = [[z + 0.5, 2.0, 3.0] for z in range(9000)]
RAGGED = [*ROWS, [1.0]]
BODIES: list[tuple[str, Any]] = [
    ("PointsRequest", {"volume": "cube", "points_zyx": ROWS, "normalize": True}),
    ("PointsRequest", {"volume": "cube", "points_zyx": RAGGED}),
    ("PointsRequest", {"volume": "cube", "points_zyx": [*ROWS, [1, 2, "3"]]}),
    ("PointsRequest", {"volume": "cube", "points": ROWS}),
    ("SearchRequest", {"ids": [*range(9000), "é", "c"], "where": ["score>0.5"] * 5000, "k": 3}),
    ("CellsRequest", {"rows": list(range(20_000)), "thumbnails": True}),
    ("JobRequest", {"kind": "embed", "volume": "cube", "points_csv": "z,y,x\nä" * 700_000, "grid": [1, 2]}),
    ("EmbedRequest", {"crops": {"dtype": "uint16", "shape": [1], "base64": "A" * 5_000_000}}),
    ("JobRequest", {"kind": "embed", "volume": "cube", "points_csv": "z,y,x\nä" * 700_000}),
    ("CropsRequest", {"crops": np.zeros((3, 4, 20, 70)).tolist(), "pool": "cls"}),
    ("CropsRequest", {"crops": [[ROWS, RAGGED], [[[]]]]}),
    ("OpenAIRequest", {"input": ["AAAA"] * 15_000}),
    ("OpenAIRequest", {"input": ["AA", "B" * 3_000_000, *["C" * 300_000] * 9, "D"]}),
]  # fmt: skip


@pytest.fixture(scope="module")
def parser() -> Iterator[JsonParser]:
    made = JsonParser()
    yield made
    made.stop()


def outcome(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` gives, or status and sentence of its refusal."""
    try:
        return work(*given)
    except Refusal as refusal:
        return refusal.status, refusal.message


def plain(value: Any) -> Any:
    """Arrays as the lists that they stand for, texts in pieces as one."""
    if isinstance(value, LongText):
        return str(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, request_options.BaseModel):
        return type(value), value.model_fields_set, {name: plain(each) for name, each in value}
    return value


def test_the_other_process_reads_what_this_one_would(parser: JsonParser) -> None:
    for name, content in BODIES:
        kind, body = getattr(request_options, name), json.dumps(content, ensure_ascii=False).encode()
        assert not is_small(body)
        expected = outcome(parse, kind, body)
        found = outcome(partial(parser.parse, digest=True), kind, body)
        if isinstance(expected, request_options.BaseModel):
            assert plain(found[0]) == plain(expected)
            assert found[1] == digest_of(expected)
        else:
            assert found == expected
    with pytest.raises(Refusal, match="Invalid JSON") as broken:
        parser.parse(request_options.SearchRequest, b"[" * 20_000)
    assert broken.value.status == 400


def test_rows_of_one_length_are_an_array_and_others_are_refused_as_lists_are() -> None:
    file = io.BytesIO()
    write_value(file, ROWS)
    file.seek(0)
    found = read_value(file)
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.dtype, found.flags.writeable) == ((9000, 3), np.float64, True)


def test_no_frame_but_an_array_holds_much() -> None:
    """Reading a frame keeps Python's lock: numbers of an array are copied, all else is made one by one."""
    for value in (
        ["c"] * 50_000,
        list(range(50_000)),
        [[1.0]] * 50_000 + [[1.0, 2.0]],
        "x" * 5_000_000,
        ["y" * 3_000_000, *["z" * 300_000] * 20],
    ):
        file = io.BytesIO()
        write_value(file, value)
        data, sizes = file.getvalue(), []
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            sizes.append(size)
            data = data[8 + size :]
        assert max(sizes) < 1.1 * 2**20
        if isinstance(value, list):
            assert 200 > len(sizes) > len(value) / 4096


def test_a_long_text_stays_in_pieces_and_is_none_of_a_name() -> None:
    file = io.BytesIO()
    write_value(file, text := "xy" * 2_000_000)
    file.seek(0)
    found = read_value(file)
    assert isinstance(found, LongText)
    assert str(found) == text
    assert from_base64(LongText(("AAAA", "AAA="))) == bytes(5)
    with pytest.raises(ValueError, match="Excess data"):
        from_base64(LongText(("AAA=", "AAAA")))
    body = request_options.PointsRequest(volume=text, points_zyx=[])
    with pytest.raises(Refusal, match="volume has 4000000 characters; 1048576 are the most") as caught:
        write_value(io.BytesIO(), body)
    assert caught.value.status == 422
    ids = request_options.SearchRequest(ids=["a", text])
    with pytest.raises(Refusal, match="ids has 4000000 characters"):
        write_value(io.BytesIO(), ids)


def test_a_million_ragged_rows_are_refused_before_they_are_made() -> None:
    with pytest.raises(Refusal, match="100002 rows are of different lengths") as caught:
        write_value(io.BytesIO(), [[1.0]] * 100_001 + [[1.0, 2.0]])
    assert caught.value.status == 422


def test_small_is_what_is_parsed_in_a_moment() -> None:
    assert is_small(b"[" * 2**15)
    assert is_small(b'"' + b"A" * 2**21 + b'"')
    for body in (b"1," * 20_000, b"[]" * 20_000, b"{}" * 20_000, b"A" * 2**23):
        assert not is_small(body)


def test_a_process_that_was_killed_is_started_again(parser: JsonParser) -> None:
    body = json.dumps({"rows": list(range(9))}).encode()
    parser.parse(request_options.CellsRequest, body)
    assert parser._process is not None
    killed = parser._process
    killed.kill()
    killed.wait()
    assert parser.parse(request_options.CellsRequest, body)[0].rows == list(range(9))
    assert killed.stdin.closed  # an open pipe is a file that a service never gets back
    assert killed.stdout.closed
    parser._process.stdout.close()  # as if it ended while it works
    with pytest.raises(Refusal, match="send the request again") as caught:
        parser.parse(request_options.CellsRequest, body)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    assert parser.parse(request_options.CellsRequest, body)[0].rows == list(range(9))


def test_a_key_twice_is_refused_in_a_large_body_too(parser: JsonParser) -> None:
    body = json.dumps({"volume": "a", "points_zyx": ROWS})[:-1] + ', "volume": "b"}'
    assert not is_small(body.encode())
    with pytest.raises(Refusal, match="the key 'volume' twice") as caught:
        parser.parse(request_options.PointsRequest, body.encode())
    assert caught.value.status == 400


def test_a_large_body_is_answered_through_it(client) -> None:
    asked = {"volume": "cube", "points_zyx": [*ROWS[:6000], [1, 2]]}
    reply = client.post("/v1/embed/points", json=asked)
    assert reply.status_code == 422
    assert "points are numbers in rows of z, y, x" in reply.json()["error"]["message"]
    reply = client.post("/v1/embed/points", json={"volume": "cube", "points_zyx": ROWS[:6000]})
    assert reply.status_code == 422
    assert "points outside the volume: 5977 of 6000" in reply.json()["error"]["message"]
