"""One search as the command line and the service ask for it."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.errors import CanvasError
from canvas_fm.inference.search.query import query


def test_cells_and_their_vectors_have_the_same_hits_but_for_themselves(index) -> None:
    cells = index.rows_of(["#3", "#70"])
    by_id, by_vector = (
        query(index, ids=["#3", "#70"], k=5),
        query(index, vectors=index.vectors(cells), k=6),
    )
    np.testing.assert_array_equal(by_vector.hits.rows[:, 0], cells)
    np.testing.assert_array_equal(by_id.hits.rows, by_vector.hits.rows[:, 1:])
    expected = index.novelty(index.vectors(cells), exclude=cells)
    np.testing.assert_allclose(by_id.novelty, expected, atol=6e-5)
    assert by_vector.novelty == [round(float(value), 4) for value in index.novelty(index.vectors(cells))]


def test_examples_have_no_novelty(index) -> None:
    answer = query(index, like=["#3"], unlike=["#300"], k=4)
    np.testing.assert_array_equal(answer.hits.rows, index.like(["#3"], ["#300"], 4).rows)
    assert answer.novelty is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of vectors, ids and like"),
        ({"ids": ["#1"], "like": ["#2"]}, "give one of vectors, ids and like"),
        ({"ids": []}, "ids is empty"),
        ({"ids": ["#1"], "unlike": ["#2"]}, "counter-examples of like"),
    ],
)
def test_what_is_asked_for_is_one_thing(index, options: dict, message: str) -> None:
    with pytest.raises(CanvasError, match=message):
        query(index, **options)
