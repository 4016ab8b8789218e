"""A route with all that its description needs: what it takes, from which models, and what it answers."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from canvas_fm.files.option_sets import Options
from serving.core.core import Core

NPY, JSON, SAFE = "application/x-npy", "application/json", "application/x-safetensors"
Content = Mapping[str, type[BaseModel] | dict[str, type[BaseModel]] | None]
"""By media type: a model, lists of models by key, or None for bytes and text."""
Answer = Callable[[Core, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """`answer`, whose docstring describes it, at a method and a path below `/v1`.

    What BentoML answers itself is described by a sentence in its place.
    """

    method: str
    path: str
    answer: Answer | str
    replies: Content
    query: type[Options] = Options
    bodies: Content = field(default_factory=dict)
    status: int = 200
    idempotency_key: bool = False
    needs_models: bool = True
    """It is answered by 503 until all models are loaded."""

    @property
    def about(self) -> str:
        return self.answer if isinstance(self.answer, str) else inspect.getdoc(self.answer) or ""
