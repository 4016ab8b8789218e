"""Declarative option sets: one pydantic model each for Python keywords, CLI flags and HTTP parameters.

Each set of options is a frozen pydantic model in the lowest room that uses it. Keyword arguments (`takes`),
flags (`cli.flags_from_options`), parameters and bodies over HTTP are made from it, so that a new option is
a line there.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from canvas_fm.errors import CanvasError

Chosen = TypeVar("Chosen", bound="Options")
F = TypeVar("F", bound=Callable[..., Any])
Positive = Annotated[int, Field(ge=1)]
Size = Annotated[float, Field(gt=0)]


def _as_tuple(value: Any) -> Any:
    """Convert lists and arrays to the tuples that the models declare; what is none is left to their check."""
    if value is None or isinstance(value, str | bytes):
        return value
    try:
        return tuple(value)
    except TypeError:
        return value


AnySequence = BeforeValidator(_as_tuple)


@dataclass(frozen=True)
class Flag:
    """Annotation of a field for the command line, where name and type do not determine its flag."""

    metavar: str | tuple[str, ...] | None = None
    name: str | None = None


class FrozenModel(BaseModel):
    """Base of option sets and stored configs: frozen, unknown names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Options(FrozenModel):
    """Base of all option sets: no infinite numbers either."""

    model_config = ConfigDict(allow_inf_nan=False)

    @classmethod
    def of(cls: type[Chosen], **values: Any) -> Chosen:
        """Build from keyword arguments; CanvasError with the first invalid one."""
        try:
            return cls.model_validate(values)
        except ValidationError as problem:
            raise CanvasError(faults(problem, cls)[0]) from problem

    @property
    def explicit(self) -> dict[str, Any]:
        """The options that were set explicitly, as keyword arguments."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def faults(
    problem: ValidationError, kind: type[BaseModel], called: Callable[[str], str] = lambda name: name
) -> list[str]:
    """One message for each invalid option; `called` maps a field to the name that the caller uses."""
    sentences: dict[str, str] = {}
    for error in problem.errors():
        name = str(error["loc"][0]) if error["loc"] else ""
        message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        message = message.replace("greater than or equal to", "at least")
        message = message.replace("expected greater than", "expected a number above")
        if error["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(name, kind.model_fields, 1)
            known = (
                f"did you mean {called(nearest[0])}?"
                if nearest
                else "known: " + ", ".join(map(called, kind.model_fields))
            )
            sentence = f"there is no option {called(name)}; {known}"
        elif error["type"] == "missing" and name in kind.model_fields:
            about = kind.model_fields[name].description
            sentence = f"{called(name)} is missing" + (f"; {about}" if about else "")
        elif error["type"] == "value_error":
            sentence = message.replace(f"{name} is", f"{called(name)} is", 1) if name else message
        else:
            sentence = f"{called(name)} is {error['input']!r:.60}; {message[0].lower()}{message[1:]}"
        sentences.setdefault(name or sentence, sentence)
    return list(sentences.values())


def flag_of(field: FieldInfo) -> Flag:
    """The `Flag` annotation of a field."""
    return next((each for each in field.metadata if isinstance(each, Flag)), Flag())


def takes(kind: type[Options], omit: Collection[str] = ()) -> Callable[[F], F]:
    """Decorator of functions with `**options`: signature and help list the options of `kind`.

    `omit` are those that are parameters of the function already.
    """
    fields = {name: field for name, field in kind.model_fields.items() if name not in omit}

    def described(function: F) -> F:
        signature = inspect.signature(function)
        parameters = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        parameters += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation
            )
            for name, field in fields.items()
        ]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        lines = (f"    {name}: {field.description}" for name, field in fields.items())
        function.__doc__ = f"{inspect.getdoc(function)}\n\nOptions:\n" + "\n".join(lines)
        return function

    return described
