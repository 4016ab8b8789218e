"""Boxes: what lies inside, what a meta.json says, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.data.points.boxes import as_boxes, box_of, draw_inside, inside_boxes, read_boxes
from canvas_fm.data.points.formats.json_file import load_json
from canvas_fm.errors import CanvasError


def written(tmp_path, content):
    path = tmp_path / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_point_is_inside_where_its_voxel_is(tmp_path):
    boxes = read_boxes(written(tmp_path, [[0, 10, 20, 5, 12, 22]]))
    points = np.array(
        [[0, 10, 20], [4, 11, 21], [5, 10, 20], [4.49, 11.49, 21.49], [4.5, 10, 20], [-0.5, 9.5, 19.5]]
    )
    assert inside_boxes(points, boxes).tolist() == [True, True, False, True, False, True]


def test_every_voxel_of_overlapping_boxes_against_a_loop():
    boxes = as_boxes([[0, 0, 0, 3, 4, 5], [2, 1, 0, 4, 5, 3], [2, 1, 0, 4, 5, 3]])
    points = np.stack(np.mgrid[-1:6, -1:6, -1:6], axis=-1).reshape(-1, 3)
    first = [
        next((k for k, b in enumerate(boxes) if all(b[a] <= p[a] < b[a + 3] for a in range(3))), -1)
        for p in points
    ]
    assert box_of(points, boxes).tolist() == first


def test_meta_json_gives_the_labelled_octants_only(real_data):
    boxes = read_boxes(real_data / "delivr_cFos" / "695" / "meta.json")
    assert boxes.tolist() == [
        [0, 0, 0, 100, 100, 100],
        [0, 0, 100, 100, 100, 200],
        [0, 100, 0, 100, 200, 100],
        [0, 100, 100, 100, 200, 200],
    ]


def test_octants_may_have_a_size_for_each_axis(tmp_path):
    octant = {"z": 1, "y": 2, "x": 3, "size": [10, 20, 30], "labelled": True}
    assert read_boxes(written(tmp_path, {"octants": [octant]})).tolist() == [[1, 2, 3, 11, 22, 33]]


def test_positions_are_drawn_evenly_and_an_overlap_counts_once():
    boxes = as_boxes([[0, 0, 0, 10, 10, 10], [0, 0, 5, 10, 10, 15]])
    drawn = draw_inside(boxes, 30_000, np.random.default_rng(0))
    assert len(drawn) == 30_000
    assert inside_boxes(drawn, boxes).all()
    thirds = np.histogram(drawn[:, 2], bins=[-0.5, 4.5, 9.5, 14.5])[0]
    assert np.abs(thirds - 10_000).max() < 400


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[[0, 0, 0, 1, 1", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ([], "expected a list of boxes"),
        ([[0, 0, 0, 1, 1]], "expected a list of boxes"),
        ([[0, 0, 0, 1, 1, "x"]], "expected a list of boxes"),
        ([[0, 0, 0, 1, 1, 1], [0, 0, 0]], "expected a list of boxes"),
        ([[0, 0, 0, 1, 1, 1.5]], "box 1 is .*whole voxels"),
        ([[0, 0, 0, 1, 1, 1], [0, 5, 0, 1, 5, 1]], r"box 2 is \[0, 5, 0, 1, 5, 1\]; each end"),
        ({"marker": "cFos"}, "has no 'octants'"),
        ({"octants": 3}, "expected a list"),
        ({"octants": [{"z": 0, "y": 0}]}, "octant 1 is .*expected z, y, x, size and labelled"),
        (
            {"octants": [{"z": 0, "y": 0, "x": 0, "size": "a", "labelled": True}]},
            "octant 1 is .*whole voxels",
        ),
        (
            {"octants": [{"z": 0, "y": 0, "x": 0, "size": 9, "labelled": False}]},
            "none of its 1 octants is labelled",
        ),
    ],
)
def test_what_is_no_list_of_boxes_is_refused(tmp_path, content, sentence):
    with pytest.raises(CanvasError, match=sentence):
        read_boxes(written(tmp_path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CanvasError, match=r"no boxes at .*nowhere\.json"):
        read_boxes(tmp_path / "nowhere.json")


def test_a_key_of_json_given_twice_is_refused(tmp_path):
    octant = '{"z": 0, "y": 0, "x": 0, "size": 8, "labelled": true}'
    path = written(tmp_path, f'{{"octants": [{octant}], "name": "a", "octants": []}}')
    with pytest.raises(CanvasError, match="the key 'octants' is given twice in one object"):
        read_boxes(path)
    with pytest.raises(CanvasError, match="the key 'x' is given twice in one object"):
        load_json(written(tmp_path, '[{"type": "point", "point": [1, 2, 3], "x": 1, "x": 2}]'))
