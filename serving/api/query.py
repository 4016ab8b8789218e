"""Query parameters of requests; each refusal names the given value."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float
from starlette.requests import Request

from serving.core.embed_crops import Window
from serving.protocol.errors import Refusal
from serving.protocol.schemas import Output

OUTPUTS = get_args(Output)
DTYPES = ("float32", "float16")
_SWITCH = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True)
class Options:
    """Options for making and returning embeddings."""

    pool: str | None = None
    layer: int | None = None
    model: str | None = None
    normalize: bool = False
    dtype: str = "float32"
    window: Window | None = None
    whiten: str | None = None

    def finished(self, vectors: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
        """Vectors L2-normalised if requested (zeros stay), in the requested dtype."""
        if self.normalize:  # of (n, d), (n, tokens, d) or (n, d, z, y, x)
            length = np.linalg.norm(vectors, axis=2 if vectors.ndim == 3 else 1, keepdims=True)
            vectors = vectors / np.where(length > 0, length, 1)
        return vectors.astype(self.dtype, copy=False)


def given(request: Request, known: Collection[str], several: Collection[str] = ()) -> dict[str, str]:
    """Query parameters; unknown or repeated keys are refused."""
    query = request.query_params
    for key in query:
        if key not in known or (len(query.getlist(key)) > 1 and key not in several):
            twice = key in known
            names = ", ".join(sorted(known)) or "none"
            reason = "is given twice" if twice else f"is unknown here; known: {names}"
            raise Refusal(422, f"the parameter {key[:50]!r} {reason}")
    return dict(query)


def embed_options(request: Request) -> Options:
    """The options of `/v1/embed`."""
    values = given(request, ("dtype", "layer", "model", "normalize", "pool", "whiten", "window"))
    return Options(
        pool=one_of(values, "pool", OUTPUTS),
        layer=whole_number(values, "layer"),
        model=values.get("model"),
        normalize=switch(values, "normalize"),
        dtype=one_of(values, "dtype", DTYPES) or "float32",
        window=window_of(values),
        whiten=values.get("whiten"),
    )


def one_of(values: dict[str, str], key: str, choices: Collection[str]) -> str | None:
    """A parameter with a few allowed values."""
    value = values.get(key)
    if value is not None and value not in choices:
        raise Refusal(422, f"{key} is {value[:50]!r}; it has to be one of {', '.join(choices)}")
    return value


def switch(values: dict[str, str], key: str) -> bool:
    """A boolean parameter: 1, true, 0 or false; default false."""
    return _SWITCH[one_of(values, key, tuple(_SWITCH)) or "0"]


def whole_number(values: dict[str, str], key: str) -> int | None:
    """An integer parameter from 0."""
    value = values.get(key)
    if value is not None and not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise Refusal(422, f"{key} is {value[:50]!r}; it has to be a whole number from 0")
    return None if value is None else int(value)


def window_of(values: dict[str, str]) -> Window | None:
    """Parse `window=LO,HI`."""
    text = values.get("window")
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise Refusal(422, f"window is {text[:50]!r}; it has to be LO,HI: two numbers, the lower one first")
    return low, high
