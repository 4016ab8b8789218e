"""What the tests check of types and shapes at every call is what jaxtyping and beartype together check."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from jaxtyping import Float32, Int

from tests.support.typechecking import _checked, check

Vectors = Float32[np.ndarray, "n d"]
one, other = np.zeros((3, 2), np.float32), np.zeros((4, 2), np.float32)


def typed(fn):
    return _checked(fn, typechecker=check)


@typed
def first(a: Vectors, b: Float32[np.ndarray, "n d"] | None = None, scale: float = 1.0) -> Vectors:
    return a if scale else a[:1]


@typed
def count(a: int, names: list[str] | None = None) -> int:
    return a if a else "none"  # type: ignore[return-value]


@typed
def own_axis(n: int) -> Int[np.ndarray, " {n}"]:
    return np.zeros(3, np.int64)


@typed
@dataclass(frozen=True)
class Pair:
    a: Vectors
    b: Vectors


class Reader:
    @typed
    @staticmethod
    def of(a: Vectors) -> Later:
        return Later()


class Later:
    pass


def test_right_calls_go_through():
    assert first(one, one, 2) is one  # an int stands for a float
    assert count(3, ["a"]) == 3
    assert own_axis(3).shape == (3,)
    assert Pair(one, one).a is one
    assert isinstance(Reader.of(one), Later)


@pytest.mark.parametrize(
    "call",
    [
        lambda: first(one.astype(np.float64)),
        lambda: first(one[0]),
        lambda: first(one, other),  # n is 3 in one and 4 in the other
        lambda: first(one, scale=0),  # n is 1 in the result
        lambda: first(one, scale="2"),
        lambda: own_axis(4),
        lambda: Pair(one, other),
        lambda: Reader.of(one[0]),
    ],
)
def test_wrong_calls_do_not(call):
    with pytest.raises(Exception, match=r"(?i)type-check error|violates type hint|beartype"):
        call()


def test_a_function_that_names_no_array_is_left_to_mypy():
    assert count(2.5) == 2.5  # type: ignore[arg-type]


def test_a_call_inside_another_has_axes_of_its_own():
    @typed
    def outer(a: Vectors) -> Vectors:
        return first(other)[:3]

    assert outer(one).shape == (3, 2)
