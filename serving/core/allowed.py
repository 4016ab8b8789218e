"""Where on the disk the service may read what is added while it runs: below the allow-listed folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from serving.protocol.errors import Refusal


def below_roots(roots: Sequence[str], given: str) -> Path:
    """The real path of `given`, relative to one of `roots`; links are resolved before it is judged.

    Refusal (403) where no root was given at the start, (404) for what lies outside or is not there: both are
    the same answer, so that nothing can be learnt of the disk.
    """
    if not roots:
        raise Refusal(403, "nothing can be added here: no folder was allow-listed with --root at the start")
    absent = Refusal(404, f"nothing is found under that path: {given[:100]!r}; give one below a --root")
    if "\0" in given or "\\" in given or "://" in given or not given.strip() or os.path.isabs(given):
        raise absent
    if any(part in ("..", "~") for part in Path(given).parts):
        raise absent
    for root in roots:
        top = Path(os.path.realpath(root))
        try:
            real = Path(os.path.realpath(top / given, strict=True))
        except (OSError, ValueError):
            continue
        if real != top and real.is_relative_to(top):
            return real
    raise absent
