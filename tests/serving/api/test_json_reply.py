"""JSON written in pieces is the JSON that one call would write."""

import asyncio
import json

import numpy as np
import pytest

from serving.api.json_reply import json_pieces, json_reply

CONTENT = {
    "rows": np.arange(60_000, dtype=np.float32).reshape(20_000, 3) / 7,
    "grid": np.arange(24).reshape(2, 3, 4),
    "flags": np.arange(9000) % 2 == 0,
    "hits": [{"id": n, "name": "é"} for n in range(1000)],
    "none": np.empty((0, 3)),
    "model": 'a "b"',
}


def test_pieces_are_the_same_text_and_short():
    expected = json.loads(json.dumps(CONTENT, default=np.ndarray.tolist))
    pieces = list(json_pieces(CONTENT))
    assert json.loads(b"".join(pieces)) == expected
    assert max(map(len, pieces)) < 300_000


def test_a_large_reply_says_how_long_it_is():
    async def sent() -> tuple[int, int]:
        reply = await json_reply({"embeddings": np.zeros((40_000, 64), np.float32)})
        parts = [part async for part in reply.body_iterator]  # type: ignore[attr-defined]
        return int(reply.headers["content-length"]), sum(map(len, parts))

    promised, came = asyncio.run(sent())
    assert promised == came > 2**23


def test_what_is_not_finite_is_no_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        list(json_pieces({"embeddings": np.array([[np.nan]])}))
