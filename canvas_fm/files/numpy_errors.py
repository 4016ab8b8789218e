"""Exceptions that numpy raises for damaged, truncated or foreign `.npy` and `.npz` files."""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib

# Its parser is Python's own, for which a header is text; zipfile takes a flipped bit of a `.npz` for an
# encrypted member, another compression or another version.
UNREADABLE_NUMPY: tuple[type[Exception], ...] = (
    OSError, ValueError, KeyError, EOFError, SyntaxError, tokenize.TokenError, OverflowError,
    RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
