"""What is wrong with a recipe, in a sentence: the key, what was given, what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def explain(problem: ValidationError, recipe: type[BaseModel], source: str, origin: Mapping[str, str]) -> str:
    """One sentence on the first thing that is wrong.

    `source` is where the settings come from, `origin` the flag that set a key, where one did.
    """
    errors = problem.errors()
    first, key = errors[0], _key(errors[0])
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        key, first["msg"] = key.rpartition(".")[0], f"expected more values than {len(first['input'])}"
    for overridden, text in origin.items():
        if f"{key}.".startswith(f"{overridden}.") or f"{overridden}.".startswith(f"{key}."):
            source = text
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {key!r}; {_nearest(key, recipe)}"
    if first["type"] == "missing" and first["msg"] == "Field required":
        return f"{source}: the key {key!r} is missing"
    messages = [_plainly(error) for error in errors if _key(error) == key] or [_plainly(first)]
    if first["type"] == "value_error":
        return f"{source}: {key or 'the recipe'}: {messages[0]}"
    expected = " or ".join([messages[0], *(m.removeprefix("expected ") for m in messages[1:])])
    return f"{source}: {key} is {first['input']!r}; {expected}"


def _key(error: ErrorDetails) -> str:
    """Where an error is, without the names that pydantic gives to the members of a union."""
    return ".".join(str(part) for part in error["loc"] if not str(part).startswith(("constrained-", "list[")))


def _plainly(error: ErrorDetails) -> str:
    if error["type"] == "model_type":
        return "expected a section of settings"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return message[0].lower() + message[1:]


def _nearest(key: str, recipe: type[BaseModel]) -> str:
    """The right key that an unknown one most likely means; one of its own section before one of another."""
    section, _, last = key.rpartition(".")
    closeness = {}
    for name in _schema(recipe):
        home, _, leaf = name.rpartition(".")
        initials = "".join(word[0] for word in leaf.split("_"))
        likeness = 1.0 if last == initials else difflib.SequenceMatcher(None, last, leaf).ratio()
        closeness[name] = likeness + 0.1 * (home == section)
    best = max(closeness, key=lambda name: closeness[name])
    if closeness[best] > 0.6:
        return f"did you mean {best!r}?"
    siblings = [name.rpartition(".")[2] for name in closeness if name.rpartition(".")[0] == section]
    return (
        f"known {'in ' + section if section else 'are'}: {', '.join(siblings)}"
        if siblings
        else "no such section"
    )


def _schema(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of every setting, sections included."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _schema(kind, f"{prefix}{name}.")
