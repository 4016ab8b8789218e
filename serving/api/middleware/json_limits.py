"""Limits on the number of values, keys and depth of JSON, before it is parsed."""

from __future__ import annotations

import re

import numpy as np

from serving.protocol.errors import Refusal

MAX_DEPTH = 32
MAX_KEYS = 1000  # of all objects of a body: no request has more than a few
# One without an end goes to the body's end: else each quote in it would be tried anew, in quadratic time.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_STRING_END = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


class JsonScanner:
    """Limits on JSON checked while it arrives, before it is parsed.

    A parser holds the whole process up, and what it makes of a body, errors included, takes many times the
    memory of its text. Refusal (422) for nesting of more than `max_depth` and more than `max_keys` keys of
    objects, (413) for more than `max_values` values, or lists.
    """

    def __init__(self, max_values: int, max_keys: int = MAX_KEYS, max_depth: int = MAX_DEPTH) -> None:
        self.max_values, self.max_keys, self.max_depth = max_values, max_keys, max_depth
        self._values, self._keys, self._depth, self._lists = 1, 0, 0, 0
        self._in_string, self._held = False, b""  # a backslash at the end of a piece, inside a string

    def feed(self, piece: bytes) -> None:
        """Scan the next bytes of the body."""
        outside = self._outside(self._held + piece)
        brackets = np.frombuffer(outside.translate(None, _NOT_BRACKETS), np.uint8)
        steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
        depths = self._depth + np.cumsum(steps)
        if len(depths):
            self._depth = int(depths[-1])
            if depths.max() > self.max_depth:
                raise Refusal(422, f"the JSON is nested more than {self.max_depth} deep")
        self._values += outside.count(b",")
        self._lists += int(np.count_nonzero(steps == 1))  # [[[1]]] is one value, and three lists to be made
        if max(self._values, self._lists) > self.max_values:
            raise Refusal(413, f"the JSON holds more than {self.max_values} values; send .npy, or less")
        self._keys += outside.count(b":")
        if self._keys > self.max_keys:
            raise Refusal(422, f"the JSON holds more than {self.max_keys} keys; no request has so many")

    def _outside(self, piece: bytes) -> bytes:
        """Bytes outside of strings; tracks whether a piece ends inside one."""
        self._held = b""
        if self._in_string:
            end = _STRING_END.match(piece)
            if end is None:
                return self._hold_backslash(piece)
            piece, self._in_string = piece[end.end() :], False
        # The NUL is left over unless a string without an end took it in.
        outside = _STRINGS.sub(b"", piece + b"\0")
        if outside.endswith(b"\0"):
            return outside
        self._in_string = True
        self._hold_backslash(piece)
        return outside

    def _hold_backslash(self, piece: bytes) -> bytes:
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            self._held = b"\\"
        return b""
