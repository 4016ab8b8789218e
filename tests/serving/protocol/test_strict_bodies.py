"""Bodies of requests: a value of another type is refused, never taken for one of the field's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.protocol import request_options as requests
from serving.protocol.errors import Refusal
from serving.protocol.json_process.child import parse

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
