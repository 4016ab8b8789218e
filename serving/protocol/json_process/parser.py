"""Parsing JSON bodies without holding the event loop up.

A parser written in C or Rust keeps Python's lock from the first to the last byte: up to 8 s for what the
limits of a body let through. Small bodies are parsed at once, others in a process whose answer is read in
pieces.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from typing import TypeVar

from pydantic import BaseModel

from serving.protocol.errors import Refusal
from serving.protocol.json_process.frames import read_frame, read_value, write_bytes, write_frame

B = TypeVar("B", bound=BaseModel)

_SMALL = 2**15  # bytes, whatever they are
_LONG = 2**22  # bytes of few values: the text of a long string
_FEW = 12_000  # values and brackets, at .3 to 4 µs each
_CODE = "from serving.protocol.json_process.child import main; main()"


def is_small(body: bytes) -> bool:
    """Whether parsing a body takes no longer than a few tens of milliseconds."""
    if len(body) <= _SMALL:
        return True
    return len(body) <= _LONG and sum(map(body.count, (b",", b"[", b"{"))) <= _FEW


class JsonParser:
    """The process that parses large bodies, started by the first of them; for one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def parse(self, kind: type[B], body: bytes, *, digest: bool = False) -> tuple[B, str]:
        """A body as a model of `protocol.request_options`, lists of numbers as arrays, and its digest.

        Refusal (400) for what is no JSON, (422) for what is none of that kind, (503) where the process ended.
        """
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            write_frame(process.stdin, (kind.__name__, digest))
            write_bytes(process.stdin, body)
            process.stdin.flush()
            last, status, answer = read_frame(process.stdout)
            model: B | None = None if status else read_value(process.stdout)
        except (OSError, EOFError, ValueError) as problem:
            self._end()
            raise Refusal(
                503, "the process that reads large JSON has ended; send the request again", retry_after_s=1
            ) from problem
        if last:
            self._end()
        if model is None:
            raise Refusal(status, answer)
        return model, answer

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise Refusal(503, "the service is stopping", retry_after_s=5)
            if self._process is not None and self._process.poll() is not None:
                _close(self._process)  # it ended by itself: killed, or short of memory
                self._process = None
            if self._process is None:
                path = os.pathsep.join(each or os.getcwd() for each in sys.path)
                environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _CODE],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                )
            return self._process

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            _close(process)

    def stop(self) -> None:
        """End the process; what it works on is refused."""
        self._stopped = True
        self._end()


def _close(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it has not ended, and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):  # bytes that were not sent
            pipe.close()
