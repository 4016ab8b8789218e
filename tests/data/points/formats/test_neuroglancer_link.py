"""Neuroglancer links: what the address carries is read, what it only points to is not fetched."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from canvas_fm import Points
from canvas_fm.errors import CanvasError

NAME = 'cells_1, "it\'s" µ'
STATE = {
    "dimensions": {"x": [2e-6, "m"], "y": [2e-6, "m"], "z": [4e-6, "m"]},
    "layers": [
        {
            "type": "annotation",
            "name": "cells_1",
            "annotations": [{"type": "point", "id": "1", "point": [3.5, 2.5, 1.5], "description": NAME}],
        }
    ],
}
LINK = "https://neuroglancer-demo.appspot.com/#!"


def short(value):
    """The viewer's JSON for addresses: ' for ", _ for a comma."""
    if isinstance(value, dict):
        return "{" + "_".join(f"{short(k)}:{short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + "_".join(map(short, value)) + "]"
    if isinstance(value, str):
        return "'" + json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"
    return json.dumps(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", LINK + quote(json.dumps(STATE))),
        ("a.json", "\ufeff" + LINK + quote(json.dumps(STATE)) + "\r\n"),
        ("a.json", LINK + short(STATE)),
        ("a.json", LINK + quote(short(STATE))),
        ("a.json", f'"{LINK}{quote(json.dumps(STATE))}"'),
        ("a.url", f"[InternetShortcut]\r\nIDList=\r\nURL={LINK}{quote(json.dumps(STATE))}\r\n"),
    ],
)
def test_the_state_in_a_link_is_read(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    points = Points.read(tmp_path / name)
    assert points.zyx.tolist() == [[1, 2, 3]]
    assert points.columns["description"].tolist() == [NAME]
    assert points.meta["voxel_um"] == "4.0 2.0 2.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            LINK + "gs://bucket/state.json",
            r"a link to a state at gs://bucket/state.json, and nothing is fetched",
        ),
        ("https://example.org/cells.json", "a link without a state"),
        (LINK + quote(json.dumps(STATE))[:150], "whose state cannot be read .* was it cut"),
    ],
)
def test_a_link_without_its_state_is_named_as_one(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CanvasError, match=message):
        Points.read(tmp_path / "a.json")


def test_a_link_called_a_table_is_named_as_one(tmp_path):
    (tmp_path / "a.txt").write_text(LINK + quote(json.dumps(STATE)))
    with pytest.raises(CanvasError, match=r"is no text, it is a link; call one of Neuroglancer .* \.json"):
        Points.read(tmp_path / "a.txt")


def test_annotations_that_lie_elsewhere_are_said_to(tmp_path):
    layer = {"type": "annotation", "name": "cells", "source": {"url": "precomputed://gs://bucket/cells"}}
    (tmp_path / "a.json").write_text(json.dumps({"layers": [layer]}))
    with pytest.raises(CanvasError, match=r"they are at precomputed://gs://bucket/cells; copy that folder"):
        Points.read(tmp_path / "a.json")
