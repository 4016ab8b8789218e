"""Bodies of requests: no value of another type is taken for the field's, and no key twice."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.protocol import request_options as requests
from serving.protocol.errors import Refusal
from serving.protocol.json_process.child import parse
from serving.protocol.json_process.repeated_keys import repeated_key

BODIES: dict[str, dict[str, Any]] = {
    "SearchRequest": {"ids": [1, "a"], "k": 5, "thumbnails": True, "where": ["marker=TH"]},
    "EmbedRequest": {
        "crops": {"dtype": "uint16", "shape": [1], "base64": ""}, "window": [1, 2.5],
        "layer": 1, "normalize": True,
    },
    "PointsRequest": {"volume": "cube", "points_zyx": [[1, 2, 3.5]], "layer": 0},
    "RefineRequest": {"volume": "cube", "points_zyx": [[1, 2, 3]], "recall": [3, 4], "all_candidates": False},
    "DetectRequest": {"volume": "cube", "box": [0, 0, 0, 1, 1, 1], "threshold": 0.5},
    "JobRequest": {"kind": "detect", "volume": "cube", "roi": [0, 0, 0, 1, 1, 1], "threshold": 0.5},
    "VolumeAddition": {"name": "a", "path": "b", "voxel_um": [4, 1.8, 1.8], "c": 1},
    "CellsRequest": {"rows": [1], "ids": ["a", 2], "thumbnails": True},
    "OpenAIRequest": {"input": "AAAA", "dimensions": 4},
    "CropsRequest": {"crops": [[[[0.5, 1]]]]},
}  # fmt: skip
WRONG = [
    True,
    False,
    "5",
    "true",
    5.0,
    1.5,
    [True],
    [[True]],
    ["5"],
    [None],
    [True, True, True],
    {},
    {"a": True},
]


def is_as_sent(read: Any, sent: Any) -> bool:
    if isinstance(sent, list):
        return len(read) == len(sent) and all(map(is_as_sent, read, sent))
    return read == sent and isinstance(read, bool) == isinstance(sent, bool) == (
        sent is True or sent is False
    )


@pytest.mark.parametrize("name", BODIES)
def test_the_types_of_json_are_taken_as_they_are(name):
    kind = getattr(requests, name)
    body = parse(kind, json.dumps(BODIES[name]).encode())
    for field in kind.model_fields:
        for value in WRONG:
            try:
                taken = getattr(parse(kind, json.dumps(BODIES[name] | {field: value}).encode()), field)
            except Refusal:
                continue
            assert value == "true" or is_as_sent(taken, value), (field, value, taken)
    assert body.model_fields_set == set(BODIES[name])


TWICE = [
    ("PointsRequest", '{"volume": "a", "points_zyx": [[1, 2, 3]], "volume": "b"}', "volume"),
    ("PointsRequest", '{"volume": "a", "points_zyx": [[1, 2, 3]], "v\\u006flume": "b"}', "volume"),
    ("PointsRequest", '{"volume": "}{\\"", "points_zyx": [], "points_zyx"\n:[[1, 2, 3]]}', "points_zyx"),
    ("EmbedRequest", '{"crops": {"dtype": "uint16", "shape": [1], "base64": "", "shape": [2]}}', "shape"),
]


@pytest.mark.parametrize(("name", "body", "key"), TWICE)
def test_a_key_twice_in_one_object_is_refused(name, body, key):
    """However it is written: a proxy may have read the first value."""
    with pytest.raises(Refusal, match=f"the key '{key}' twice in one object; give it once") as caught:
        parse(getattr(requests, name), body.encode())
    assert caught.value.status == 400


TEXTS = st.sampled_from(["a", "b", "", "\\", '"', "{", "}", ":", '":', "é", "\ud800", "\\u0061"])
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(0, 9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(st.tuples(TEXTS, inner), max_size=3)),
    max_leaves=12,
)


def written(value: Any, ascii_only: bool) -> str:
    """JSON in which a list of pairs is an object, whose keys may repeat."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        pairs = (f"{json.dumps(key, ensure_ascii=ascii_only)} : {written(v, ascii_only)}" for key, v in value)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(each, ascii_only) for each in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


@given(VALUES, st.booleans())
@settings(max_examples=150, deadline=None)
def test_keys_are_found_twice_where_python_s_parser_finds_them(value, ascii_only):
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        found.extend(key for at, key in enumerate(keys) if key in keys[:at])

    body = written(value, ascii_only)
    json.loads(body, object_pairs_hook=note)
    key = repeated_key(body.encode("utf-8", "surrogatepass"))
    assert (key in found) if found else key is None


def test_looking_for_keys_twice_takes_time_in_proportion_to_the_body():
    for part in ("\\\\", '","', "{},", "1,"):
        took = []
        for size in (2**16, 2**20):
            body = ('["' + part * (size // len(part)) + '"]').encode()
            body = body.replace(b'"{},', b"{},").replace(b',"]', b"]").replace(b'"1', b"1")
            began = time.process_time()
            repeated_key(body)
            took.append(time.process_time() - began)
        assert took[1] < 0.1 + 60 * took[0], part
