"""Errors of the operating system as error messages: which path, why, and what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
# Names that `write_atomic` and `new_folder` give.
_TEMPORARY = re.compile(r"^\.(?P<name>.+?)\.[^.]+\.(tmp|unfinished)$")
_SMALL = 1 << 20  # bytes left on a disk that counts as full
_NEVER_USUAL = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.EIO, errno.ENOMEM,
)  # fmt: skip

_AGAIN = "run the same command again"
_MANY_FILES = (
    "too many files are open, this process may have {limit}: raise the limit (ulimit -n 65536) and " + _AGAIN
)
_EXISTS = "{path} exists already; delete it or give another name"
_IN_USE = "{path} is in use by another program; end that, or give another name"
# Sentences of refusals that need no look at the path itself.
_SENTENCES = {
    errno.EROFS: "{path}: the file system is read-only; write to another folder",
    errno.EMFILE: _MANY_FILES,
    errno.ENFILE: _MANY_FILES,
    errno.ENAMETOOLONG: "{cut}: the name is longer than the file system takes; give a shorter one",
    errno.EISDIR: "{path} is a folder; give the name of a file",
    errno.EEXIST: _EXISTS,
    errno.ENOTEMPTY: _EXISTS,
    errno.EFBIG: "{path}: the file grew larger than the file system or the limit of this process takes "
    "(ulimit -f); raise the limit or write to another disk, and " + _AGAIN,
    errno.EIO: "{path}: the disk failed to read or write (I/O error); check the disk, or use another",
    errno.ESTALE: "{path}: the network folder was lost; mount it again and " + _AGAIN,
    errno.ELOOP: "{path}: its symbolic links lead in a circle; give the file itself",
    errno.ENOMEM: "the machine has no memory left; end other programs, or run where there is more memory",
    errno.ETXTBSY: _IN_USE,
    errno.EBUSY: _IN_USE,
}


def system_error(problem: BaseException) -> OSError | None:
    """The refusal of the operating system behind an exception, however deep a library wraps it.

    Behind what is no OSError itself only what no code handles as usual is looked for (a full disk, not a
    missing file); libraries in C++ have the system's words in their text alone, where they are found too.
    """
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem
    for each in _chain(problem):
        if isinstance(each, OSError) and each.errno in _NEVER_USUAL:
            return each
    for each in _chain(problem):
        for code in _NEVER_USUAL if isinstance(each, OSError | RuntimeError | ValueError) else ():
            if os.strerror(code) in str(each):
                return OSError(code, os.strerror(code))
    return problem if isinstance(problem, OSError) else None


def is_full(problem: BaseException) -> bool:
    """Whether a full disk or a used-up quota is behind an exception."""
    cause = system_error(problem)
    return cause is not None and cause.errno in FULL


def full_disk(path: Path | str) -> str:
    """A full disk in words: while writing what, and whether it is the one of temporary files that is full."""
    folder, shown = tempfile.gettempdir(), _without_temporary(Path(path))
    if not _has_room(folder) and _has_room(path):
        return f"no space left in {folder}, the folder of temporary files (TMPDIR), while writing {shown}"
    return f"no space left on the disk while writing {shown}"


def explain(problem: OSError, outputs: Sequence[str] = ()) -> str:
    """One sentence: what was read or written, what the system refused, what to do.

    `outputs` are the files and folders that the command was to write; they are named where the system
    names no path.
    """
    path, code = _path_of(problem), problem.errno
    written = path or " and ".join(outputs) or "the results"
    if code in FULL:
        what = full_disk(outputs[0] if path is None and len(outputs) == 1 else written)
        quota = " (the quota of this user is used up)" if code == errno.EDQUOT else ""
        return f"{what}{quota}: free some space and {_AGAIN}"
    if code in (errno.EACCES, errno.EPERM):
        return f"{written}: {_who_may(Path(written)) if path else 'no permission'}"
    if code == errno.ENOENT:
        return f"{written}: {_missing(Path(written)) if path else 'it is not there; check the path'}"
    if code == errno.ENOTDIR:
        return f"{written}: {_file_above(Path(written))} is a file, not a folder; give another path"
    if code in _SENTENCES:
        return _SENTENCES[code].format(path=written, cut=_cut(written), limit=_open_files())
    text = problem.strerror or " ".join(str(problem).split()) or type(problem).__name__
    return f"{text}: {path}" if path else text


def _chain(problem: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = problem
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _path_of(problem: OSError) -> str | None:
    """The path of an error as the user knows it."""
    name = problem.filename2 or problem.filename
    if not isinstance(name, str | os.PathLike | bytes) or not name:
        return None
    return str(_without_temporary(Path(os.fsdecode(name))))


def _without_temporary(path: Path) -> Path:
    """A path without the names of temporary files and folders."""
    parts = [match["name"] if (match := _TEMPORARY.match(part)) else part for part in path.parts]
    # A new folder is made inside a hidden one of its own name: X/.runs.a1b2.tmp/runs/file.
    kept = [
        part
        for at, part in enumerate(parts)
        if at == 0 or part != parts[at - 1] or part == path.parts[at - 1]
    ]
    return Path(*kept)


def _has_room(path: Path | str) -> bool:
    for folder in (Path(path), *Path(path).absolute().parents):
        try:
            return shutil.disk_usage(folder).free >= _SMALL
        except OSError:
            continue
    return True


def _who_may(path: Path) -> str:
    """Which permission is missing, at which file or folder."""
    try:
        existing = next((each for each in (path, *path.absolute().parents) if os.path.lexists(each)), path)
        closed = next((each for each in path.absolute().parents if not os.access(each, os.X_OK)), None)
        folder = existing if existing.is_dir() else path.absolute().parent
        if closed is not None and closed.is_dir():
            return f"no permission to enter {closed}; give another path, or get the right (chmod, chown)"
        if existing == path and not os.access(path, os.R_OK):
            return "no permission to read it; give another file, or get the right (chmod, chown)"
        if not os.access(folder, os.W_OK):
            return f"no permission to write into {folder}; give another path, or get the right (chmod, chown)"
    except OSError:
        pass
    return "permission denied; give another path, or get the right (chmod, chown)"


def _open_files() -> str:
    try:
        import resource

        return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    except (ImportError, OSError):  # Windows
        return "no more"


def _cut(path: str) -> str:
    return path if len(path) <= 120 else f"{path[:60]}…{path[-40:]}"


def _file_above(path: Path) -> Path:
    return next((each for each in (path, *path.parents) if each.is_file()), path)


def _missing(path: Path) -> str:
    """The missing part of a path: the file, or a folder above it."""
    try:
        if path.absolute().parent.is_dir():
            return "there is no such file or folder; check the path"
    except OSError:
        pass
    return f"there is no folder {path.absolute().parent}; make it or check the path"
