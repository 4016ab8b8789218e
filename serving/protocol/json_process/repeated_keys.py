"""Refusal of duplicate keys in JSON objects, of which parsers keep the last (RFC 8259, section 4)."""

from __future__ import annotations

import json
import re

# What is between, then a bracket of an object, or a text with the colon that makes it a key, or the end.
# Possessive: no way back, linear time.
_TOKEN = re.compile(rb'[^{}"]*+(?:([{}])|("[^"\\]*+(?:\\.[^"\\]*+)*+")(?:[ \t\r\n]*+(:))?|\Z)', re.DOTALL)


def repeated_key(body: bytes) -> str | None:
    """The first key that an object of a valid JSON body has for the second time."""
    objects: list[set[bytes]] = []
    for token in _TOKEN.finditer(body):
        if token[1] == b"{":
            objects.append(set())
        elif token[1] is not None:
            objects.pop()
        elif token[3] is not None:
            key = token[2]
            if b"\\" in key:  # "\u006b" is "k"
                key = json.dumps(json.loads(key), ensure_ascii=False).encode("utf-8", "surrogatepass")
            if key in objects[-1]:
                return str(json.loads(key.decode("utf-8", "surrogatepass")))
            objects[-1].add(key)
    return None
