"""Files whose content is elsewhere: links to what is not here, pointers of Git LFS and git-annex."""

from __future__ import annotations

import os
from pathlib import Path

_LFS = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = len(_LFS)  # that tell one
ANNEX_OBJECTS = "annex/objects/"  # in what links of git-annex lead to
_ANNEX = b"/annex/objects/"
FETCH_ANNEX = "fetch it: git annex get, datalad get"
_FETCH_LFS = "fetch it: git lfs pull"


def pointer_in(head: bytes) -> tuple[str, str] | None:
    """The pointer (Git LFS, git-annex) that a file's first bytes are, and how to fetch what it names."""
    if head.startswith(_LFS):
        return "holds a pointer of Git LFS in place of its content", _FETCH_LFS
    if head.startswith(_ANNEX):
        return "holds a pointer of git-annex in place of its content", FETCH_ANNEX
    return None


def why_unfetched(path: Path) -> tuple[str, str] | None:
    """`pointer_in` of a file on the disk, and of a link whose target is missing."""
    try:
        if path.is_symlink() and not path.exists():
            return f"is a link to {os.readlink(path)}, which is not here", FETCH_ANNEX
        with path.open("rb") as file:
            return pointer_in(file.read(POINTER_BYTES))
    except OSError:
        return None
