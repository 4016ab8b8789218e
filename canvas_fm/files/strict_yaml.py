"""Strict YAML: parsed, validated against a pydantic schema, all errors with the nearest valid key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import FrozenModel


class StrictModel(FrozenModel):
    """Base of schema sections: unknown keys are errors, and so is text where a number is expected."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


_LONGEST = 65_536  # bytes of a file that a stranger wrote
_SHOWN = 60  # characters of a wrong value that a sentence repeats
Schema = TypeVar("Schema", bound=BaseModel)


def read_settings(path: str | Path, schema: type[Schema]) -> Schema:
    """Read and validate a YAML file; CanvasError with the first error, naming the nearest valid key."""
    settings, faults = check_settings(path, schema)
    if settings is None:
        raise CanvasError(f"{path}: {faults[0]}")
    return settings


def check_settings(
    path: str | Path, schema: type[Schema], *, trusted: bool = True
) -> tuple[Schema | None, list[str]]:
    """The validated YAML file, or None and one message for each error, unknown keys first.

    One that is not `trusted` may not use aliases (a few lines of them unfold to more than any memory) and has
    to be short.
    """
    path = Path(path)
    if not path.is_file():
        return None, ["there is no such file"]
    if not trusted and path.stat().st_size > _LONGEST:
        return None, [f"{path.stat().st_size:,} bytes; at most {_LONGEST:,} are read"]
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader if trusted else _Plain)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        return None, [f"not readable as YAML: {' '.join(str(problem).split())}"]
    if not isinstance(content, dict):
        return None, [f"expected a mapping with the keys {', '.join(schema.model_fields)}"]
    try:
        settings = schema.model_validate(content)
    except ValidationError as problem:
        return None, [sentence for _, sentence in explain(problem, schema)]
    faults = [
        f"{key} is {str(value).lower()}; expected a number"
        for key, value in _switches_as_numbers(content, settings)
    ]
    return (None, faults) if faults else (settings, [])


def _switches_as_numbers(content: Any, read: Any, key: str = "") -> Iterator[tuple[str, bool]]:
    """Keys of true and false (in YAML yes, no, on, off too) that were read as the numbers 1 and 0."""
    if isinstance(content, bool):
        if isinstance(read, int | float) and not isinstance(read, bool):
            yield key, content
    elif isinstance(content, dict):
        for name, value in content.items():
            inner = read.get(name) if isinstance(read, dict) else getattr(read, str(name), None)
            yield from _switches_as_numbers(value, inner, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list) and isinstance(read, list | tuple):
        for at, (value, inner) in enumerate(zip(content, read, strict=False), 1):
            yield from _switches_as_numbers(value, inner, f"{key}[{at}]")


class UniqueKeys:
    """Part of a YAML loader: a key given twice is an error, where YAML takes the last value in silence."""

    def construct_mapping(self: Any, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            if isinstance(key, Hashable):  # else yaml refuses it
                keys.add(key)
        content: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return content


class Loader(UniqueKeys, yaml.SafeLoader):
    """YAML loader: 1e-6 is a number (YAML 1.1 reads text), no dates, duplicate keys are errors."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: str(node.value))


class _Plain(Loader):
    """YAML dumper without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read here", mark)
        return super().compose_node(parent, index)


def explain(problem: ValidationError, schema: type[BaseModel]) -> list[tuple[str, str]]:
    """(key, message) of each validation error, unknown keys first."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for fault in sorted(problem.errors(), key=lambda fault: fault["type"] != "extra_forbidden"):
        by_key.setdefault(_key(fault), []).append(fault)
    return [(key, _sentence(key, faults, schema)) for key, faults in by_key.items()]


def _too_short(fault: ErrorDetails) -> bool:
    return fault["type"] == "missing" and isinstance(fault["loc"][-1], int)


def _key(fault: ErrorDetails) -> str:
    """The dotted key of an error, without the names that pydantic gives to the members of a union."""
    key = ""
    for part in fault["loc"][: -1 if _too_short(fault) else None]:
        if isinstance(part, int):
            key += f"[{part + 1}]"
        elif not re.match(r"(list|dict|tuple|function|constrained)\b|str$|int$|float$", str(part)):
            key += f".{part}" if key else str(part)
    return key


def _sentence(key: str, faults: Sequence[ErrorDetails], schema: type[BaseModel]) -> str:
    fault = faults[0]
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_nearest(key, schema)}"
    if fault["type"] == "missing" and not _too_short(fault):
        return f"the key {key!r} is missing"
    first, *more = dict.fromkeys(_expected(text) for text in faults)
    if fault["type"] == "value_error":
        return f"{key}: {first}" if key else first
    value = repr(fault["input"])
    value = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return f"{key} is {value}; {' or '.join([first, *(text.removeprefix('expected ') for text in more)])}"


def _expected(fault: ErrorDetails) -> str:
    if fault["type"] == "model_type":
        return "expected a section of settings"
    if _too_short(fault):
        return f"expected more values than {len(fault['input'])}"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return message if fault["type"] == "value_error" else message[0].lower() + message[1:]


def _nearest(key: str, schema: type[BaseModel]) -> str:
    """The valid key closest to an unknown one, preferably in the same section."""
    section, _, last = key.rpartition(".")
    plain = re.sub(r"\[\d+\]", "", section)
    closeness = {}
    for name in _names(schema):
        home, _, leaf = name.rpartition(".")
        initials = "".join(word[0] for word in leaf.split("_"))
        similarity = 1.0 if last == initials else difflib.SequenceMatcher(None, last, leaf).ratio()
        closeness[name] = similarity + 0.1 * (home == plain)
    best = max(closeness, key=lambda name: closeness[name])
    if closeness[best] > 0.6:
        return f"did you mean {best.replace(plain, section, 1)!r}?" if plain else f"did you mean {best!r}?"
    siblings = [name.rpartition(".")[2] for name in closeness if name.rpartition(".")[0] == plain]
    return f"known there: {', '.join(siblings)}"


def _names(schema: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a schema, those inside lists and unions included."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        for name, field in schema.model_fields.items():
            yield f"{prefix}{name}"
            yield from _names(field.annotation, f"{prefix}{name}.")
    else:
        for kind in get_args(schema):
            yield from _names(kind, prefix)
