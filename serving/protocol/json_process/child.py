"""The process that parses: bodies come by its input, validated models go by its output, until that ends."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import resource
import signal
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from serving.protocol import request_options
from serving.protocol.errors import Refusal, describe
from serving.protocol.json_process.frames import read_bytes, read_frame, write_frame, write_value
from serving.protocol.json_process.repeated_keys import repeated_key

B = TypeVar("B", bound=BaseModel)

_MOST_BYTES = 300 * 2**20  # of memory; more is given back by ending


def parse(kind: type[B], body: bytes) -> B:
    """A JSON body as its pydantic model; Refusal for an invalid one.

    Types are those that JSON has: true is no number (nor a cell's id), 1 is no switch, "5" no count. A key
    that an object has twice is refused: a proxy may read the first value, where pydantic takes the last.
    """
    try:
        model = kind.model_validate_json(body, strict=True)
    except ValidationError as problem:
        errors = problem.errors(include_url=False, include_input=False)
        status = 400 if errors[0]["type"] == "json_invalid" else 422
        raise Refusal(status, describe(list(errors))) from problem
    # Only now, where a body has no unknown keys: there may be millions of them.
    if (key := repeated_key(body)) is not None:
        raise Refusal(400, f"the JSON has the key {key[:50]!r} twice in one object; give it once")
    return model


def digest_of(model: BaseModel) -> str:
    """sha256 of a model's contents, whatever the order and the spaces of its JSON."""
    return hashlib.sha256(model.model_dump_json().encode()).hexdigest()


def main() -> None:
    """Answer until the input ends, which is when the service's process does."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal, or a supervisor: the input ends in time
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # no cycles are made here, and looking for them among millions of numbers takes seconds
    with os.fdopen(os.dup(0), "rb") as source, os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what is printed by mistake is no answer
        while True:
            try:
                name, digest = read_frame(source)
                body = bytes(read_bytes(source))
            except EOFError:
                return
            if _answer(out, name, digest, body):
                return


def _answer(out: IO[bytes], name: str, digest: bool, body: bytes) -> bool:
    """Write the answer, which begins with whether it is the last one."""
    try:
        model = parse(getattr(request_options, name), body)
        identity = digest_of(model) if digest else ""
        parsed = io.BytesIO()
        write_value(parsed, model)
    except Refusal as refusal:
        write_frame(out, (last := _is_large(), refusal.status, refusal.message))
    else:
        write_frame(out, (last := _is_large(), 0, identity))
        out.write(parsed.getbuffer())
    out.flush()
    return last


def _is_large() -> bool:
    """Whether this process holds much memory now: getrusage would count its parent's before it began."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no Linux
        return False
    return pages * resource.getpagesize() > _MOST_BYTES
