"""Filter conditions on the rows of an index: `marker=NeuN`, `region=CTX,HPF`, `score>=0.5`, `brain!=b7`."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from canvas_fm.errors import CanvasError
from canvas_fm.inference.search.index.index_store import Part

_CONDITION = re.compile(r"\s*([^=!<>]+?)\s*(==|!=|>=|<=|=|>|<)\s*(.*?)\s*")
_ORDER = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Condition:
    """A column, an operator, and the value or values to compare with."""

    name: str
    sign: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{','.join(self.values)}"

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse `NAME=A,B` (one of), `NAME==A` (commas belong to the value), `!=`, `<`, `<=`, `>`, `>=`."""
        match = _CONDITION.fullmatch(text)
        if not match or not match[3]:
            raise CanvasError(
                f"the condition {text[:80]!r} cannot be read; write NAME=VALUE, NAME!=VALUE or NAME>=NUMBER, "
                "for example marker=NeuN or score>=0.5"
            )
        name, sign, value = match.groups()
        values = value.split(",") if sign in ("=", "!=") else [value]
        return cls(name, "=" if sign == "==" else sign, tuple(each.strip() for each in values))


def rows_where(parts: list[Part], where: Sequence[str]) -> Bool[np.ndarray, " n"] | None:
    """Mask of rows that fulfil all conditions; None without conditions. Rows without the column never do.

    Raises CanvasError for a column that no part has, a word where a number is due, and where nothing is left.
    """
    conditions = [Condition.parse(text) for text in where]
    if not conditions:
        return None
    known = {name for part in parts for name in (*part.columns, *part.constants, "z", "y", "x")}
    for condition in conditions:
        if condition.name not in known:
            raise CanvasError(f"no row has a column {condition.name!r}; known: {', '.join(sorted(known))}")
    masks = []
    for part in parts:
        mask = np.ones(part.rows, bool)
        for condition in conditions:
            mask &= _holds(part, condition)
        masks.append(mask)
    whole = np.concatenate(masks)
    if not whole.any():
        raise CanvasError(
            f"no row of the index has {' and '.join(map(str, conditions))}{_hint(parts, conditions)}"
        )
    return whole


def _holds(part: Part, condition: Condition) -> Any:
    name = condition.name
    if name in ("z", "y", "x"):
        return _numbers(condition, part.zyx[:, "zyx".index(name)])
    if name in part.columns:
        values = part.values(name)
        if part.columns[name] == "number":
            return _numbers(condition, values)
        words = np.asarray(part.words(name), dtype=np.str_)
        return _words(condition, words)[values] if len(words) else False
    constant = part.constants.get(name)
    return False if constant is None else _words(condition, np.asarray([constant]))[0]


def _words(condition: Condition, words: np.ndarray) -> np.ndarray:
    if condition.sign in _ORDER:
        raise CanvasError(f"{condition}: {condition.name} is text, which has no order; use = or !=")
    among = np.isin(words, condition.values)
    return ~among if condition.sign == "!=" else among


def _numbers(condition: Condition, values: np.ndarray) -> np.ndarray:
    try:
        operands = np.array([_number(each) for each in condition.values])
    except ValueError as problem:
        raise CanvasError(
            f"{condition}: {condition.name} is a number; {','.join(condition.values)!r} is none"
        ) from problem
    if condition.sign in _ORDER:
        return np.asarray(_ORDER[condition.sign](values, operands[0]))
    # A score that was stored as float32 is met by its decimal digits.
    operands = operands.astype(values.dtype) if values.dtype.kind == "f" else operands
    among = np.isin(values, operands)
    return ~among & (values == values) if condition.sign == "!=" else among


def _number(text: str) -> float:
    value = {"true": 1.0, "false": 0.0}.get(text.lower())
    value = float(text) if value is None else value
    if value != value:
        raise ValueError(text)
    return value


def _hint(parts: list[Part], conditions: list[Condition]) -> str:
    """The values of a text column, where a condition names another."""
    for condition in conditions:
        words = {part.constants.get(condition.name) for part in parts} - {None}
        for part in parts:
            if part.columns.get(condition.name) == "text":
                words |= set(part.words(condition.name))
        if words and condition.sign == "=" and not words & set(condition.values):
            known_words = sorted(map(str, words))
            more = f" and {len(known_words) - 10} more" if len(known_words) > 10 else ""
            return f"; {condition.name} is one of {', '.join(known_words[:10])}{more}"
    return ""
