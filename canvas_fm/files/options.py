"""Options that several ways of asking share: said once, checked once, for Python, command line and HTTP.

Each set of options is a frozen pydantic model in the lowest room that uses it. Keyword arguments (`takes`),
flags (`canvas_fm.cli.flags`), parameters and bodies over HTTP are made from it, so that a new option is a
line there.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
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
    """Lists and arrays as the tuple that a model expects."""
    return value if value is None or isinstance(value, str | bytes) else tuple(value)


AnySequence = BeforeValidator(_as_tuple)


@dataclass(frozen=True)
class Flag:
    """How an option looks on the command line, where its name and type do not say it."""

    metavar: str | tuple[str, ...] | None = None
    name: str | None = None


class Options(BaseModel):
    """A set of options: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls: type[Chosen], **given: Any) -> Chosen:
        """The options by name; CanvasError with the first that is wrong."""
        try:
            return cls.model_validate(given)
        except ValidationError as problem:
            raise CanvasError(faults(problem, cls)[0]) from problem

    @property
    def given(self) -> dict[str, Any]:
        """Those that were stated, as keyword arguments."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def faults(
    problem: ValidationError, kind: type[BaseModel], called: Callable[[str], str] = lambda name: name
) -> list[str]:
    """A sentence for each option that is wrong; `called` is what the caller knows an option by."""
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
        elif error["type"] == "value_error":
            sentence = message.replace(f"{name} is", f"{called(name)} is", 1) if name else message
        else:
            sentence = f"{called(name)} is {error['input']!r:.60}; {message[0].lower()}{message[1:]}"
        sentences.setdefault(name or sentence, sentence)
    return list(sentences.values())


def flag_of(field: FieldInfo) -> Flag:
    """What the field's annotation says of its flag."""
    return next((each for each in field.metadata if isinstance(each, Flag)), Flag())


def takes(kind: type[Options]) -> Callable[[F], F]:
    """For a function with `**options`: its signature and its help name the options of `kind`."""

    def described(function: F) -> F:
        signature = inspect.signature(function)
        parameters = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        parameters += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation
            )
            for name, field in kind.model_fields.items()
        ]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        lines = (f"    {name}: {field.description}" for name, field in kind.model_fields.items())
        function.__doc__ = f"{inspect.getdoc(function)}\n\nOptions:\n" + "\n".join(lines)
        return function

    return described
