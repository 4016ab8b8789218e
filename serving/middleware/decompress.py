"""Decompression in bounded steps, and limits on the size and depth of JSON before it is parsed."""

from __future__ import annotations

import re
import zlib

import numpy as np

from serving.protocol.errors import Refusal

STEP = 2**20  # bytes that are unpacked at a time
MOST_DEPTH = 32
# One without an end goes to the body's end: else each quote in it would be tried anew, in quadratic time.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


class Gunzip:
    """Unpacks gzip as it comes, never more than STEP bytes at a time; Refusal (400) for what is no gzip."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._waiting = b""

    def feed(self, data: bytes) -> None:
        """Take packed bytes in."""
        self._waiting += data

    def next(self) -> bytes:
        """Up to STEP unpacked bytes; none where more has to be fed first."""
        if self._stream.eof:
            if self._waiting:
                raise Refusal(400, "something follows the end of the gzip body")
            return b""
        try:
            out = self._stream.decompress(self._waiting, STEP)
        except zlib.error as problem:
            raise Refusal(400, f"the body cannot be unpacked as gzip: {problem}") from problem
        self._waiting = self._stream.unconsumed_tail or self._stream.unused_data
        return out

    def check_end(self) -> None:
        """Refuse a body that stops in the middle."""
        if not self._stream.eof:
            raise Refusal(400, "the gzip body ends before its end")


def check_json(body: bytes, most_values: int, most_depth: int = MOST_DEPTH) -> None:
    """Refuse JSON of too many values (413) or nested too deep (422), before anything parses it."""
    values = body.count(b",") + 1
    if values > most_values:
        raise Refusal(413, f"the JSON holds {values} values; {most_values} are the most, send .npy or less")
    check_depth(body, most_depth)


def check_depth(body: bytes, most: int = MOST_DEPTH) -> None:
    """Refuse JSON (422) whose lists and objects stand more than `most` deep, before anything parses it."""
    brackets = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    if len(brackets) > most:
        kinds = np.frombuffer(brackets, np.uint8)
        steps = np.where((kinds == ord("[")) | (kinds == ord("{")), 1, -1).astype(np.int8)
        if int(np.cumsum(steps, dtype=np.int32).max()) > most:
            raise Refusal(422, f"the JSON is nested more than {most} deep")
