"""The parameters of an address as the model of options that its route names."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from starlette.requests import Request

from canvas_fm.files.option_sets import Options, faults
from serving.protocol.errors import Refusal
from serving.protocol.request_values import Text

Asked = TypeVar("Asked", bound=Options)


def read_query(request: Request, kind: type[Asked]) -> Asked:
    """The parameters as `kind`; Refusal (422) with all that is wrong: unknown, given twice, no such value."""
    query, known = request.query_params, kind.model_fields
    values: dict[str, Any] = {}
    for key in query:
        several = key in known and text_of(known[key]).several
        if key not in known or (len(query.getlist(key)) > 1 and not several):
            names = ", ".join(sorted(known)) or "none"
            reason = "is given twice" if key in known else f"is unknown here; known: {names}"
            raise Refusal(422, f"the parameter {key[:50]!r} {reason}")
        values[key] = query.getlist(key) if several else query[key]
    try:
        return kind.model_validate(values)
    except ValidationError as problem:
        raise Refusal(422, "; ".join(faults(problem, kind))) from problem


def no_query(request: Request) -> None:
    """Refuse (422) any query parameter, on routes that read their body alone."""
    read_query(request, Options)


def text_of(field: FieldInfo) -> Text:
    """Text of a field's value as a query parameter."""
    return next((each for each in _metadata(field) if isinstance(each, Text)), Text())


def _metadata(field: FieldInfo) -> list[Any]:
    """Annotations of a type, also within `X | None`."""
    inner = [
        each
        for part in getattr(field.annotation, "__args__", ())
        for each in getattr(part, "__metadata__", ())
    ]
    return [*field.metadata, *inner]
