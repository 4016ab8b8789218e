"""What messages have in common: a number with its noun and verb."""

import numpy as np
import pytest

from canvas_fm.errors import counted


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((0, "cell"), "0 cells"),
        ((1, "cell"), "1 cell"),
        ((np.int64(1), "label", "have"), "1 label has"),
        ((1, "row", "repeat"), "1 row repeats"),
        ((1200, "missed cell", "are"), "1,200 missed cells are"),
        ((2, "box"), "2 boxes"),
        ((2, "query", "were"), "2 queries were"),
        ((3, "day"), "3 days"),
    ],
)
def test_a_number_has_its_noun_and_verb(words, sentence):
    assert counted(*words) == sentence
