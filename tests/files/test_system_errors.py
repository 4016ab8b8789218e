"""What the operating system refuses: which path, why, and what to do."""

from __future__ import annotations

import errno
import os

import pytest

from canvas_fm.errors import StorageFull
from canvas_fm.files import system_errors
from canvas_fm.files.atomic import disk_full_as_error
from canvas_fm.files.system_errors import explain, full_disk, system_error


def error(code: int, *paths: object) -> OSError:
    return OSError(code, os.strerror(code), *map(str, paths))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left on the disk while writing {}: free some space and run the same"),
        (errno.EDQUOT, "no space left on the disk while writing {} (the quota of this user is used up)"),
        (errno.EROFS, "{}: the file system is read-only; write to another folder"),
        (errno.EISDIR, "{} is a folder; give the name of a file"),
        (errno.EEXIST, "{} exists already; delete it or give another name"),
        (errno.EFBIG, "{}: the file grew larger than the file system or the limit of this process takes"),
        (errno.EIO, "{}: the disk failed to read or write"),
        (errno.ESTALE, "{}: the network folder was lost; mount it again"),
        (errno.ELOOP, "{}: its symbolic links lead in a circle"),
        (errno.ENOENT, "{}: there is no such file or folder; check the path"),
    ],
)  # fmt: skip
def test_path_reason_and_advice(code, words, tmp_path):
    path = tmp_path / "cells.csv"
    assert explain(error(code, path)).startswith(words.format(path))
    assert words.format("OUT").split(":")[0] in explain(error(code), ["OUT"])


def test_what_is_missing_or_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "cells.csv"
    assert f"{tmp_path / 'file'} is a file, not a folder" in explain(error(errno.ENOTDIR, below))
    none = tmp_path / "none" / "cells.csv"
    assert f"there is no folder {none.parent}; make it" in explain(error(errno.ENOENT, none))
    assert "the name is longer" in explain(error(errno.ENAMETOOLONG, tmp_path / ("x" * 300)))


def test_files_open_says_how_many_may_be(tmp_path):
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert f"may have {limit}: raise the limit (ulimit -n" in explain(error(errno.EMFILE, tmp_path / "x"))


@pytest.mark.parametrize(
    ("denied", "words"),
    [
        (("file", os.R_OK), "file: no permission to read it"),
        (("", os.W_OK), "file: no permission to write into {}; give another path"),
        (("", os.X_OK), "file: no permission to enter {}; give another path"),
        ((None, None), "file: permission denied; give another path"),
    ],
)
def test_the_permission_that_is_missing_is_named(denied, words, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    place = None if denied[0] is None else tmp_path / denied[0]
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (place, denied[1]))
    assert words.format(tmp_path) in explain(error(errno.EACCES, tmp_path / "file"))


def test_names_of_temporary_files_are_not_shown(tmp_path):
    path = tmp_path / ".runs.k2_x9.tmp" / "runs" / ".last.pt.ab12.tmp"
    assert explain(error(errno.EROFS, path)).startswith(f"{tmp_path / 'runs' / 'last.pt'}: ")
    assert full_disk(path) == f"no space left on the disk while writing {tmp_path / 'runs' / 'last.pt'}"
    assert explain(error(errno.EROFS, tmp_path / "a" / "a")).startswith(f"{tmp_path / 'a' / 'a'}: ")


def raised_behind(refusal: OSError, *, cause: bool) -> ValueError:
    """A ValueError that was raised while the refusal was handled."""
    try:
        try:
            raise refusal
        except OSError as first:
            if cause:
                raise ValueError("codec failed") from first
            raise ValueError("broken")  # noqa: B904
    except ValueError as problem:
        return problem


def test_a_refusal_is_found_behind_other_exceptions():
    for cause in (True, False):
        assert system_error(raised_behind(error(errno.ENOSPC), cause=cause)).errno == errno.ENOSPC
    text = RuntimeError(f"Error in faiss: could not write: {os.strerror(errno.ENOSPC)}")
    assert system_error(text).errno == errno.ENOSPC


def test_a_mistake_of_ours_is_not_taken_for_a_missing_file():
    assert system_error(raised_behind(error(errno.ENOENT, "cache"), cause=False)) is None


def test_a_full_folder_of_temporary_files_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(system_errors, "_has_room", lambda path: str(path) == str(tmp_path / "x"))
    monkeypatch.setattr(system_errors.tempfile, "gettempdir", lambda: "/scratch")
    full = pytest.raises(StorageFull, match=r"no space left in /scratch, the folder .* \(TMPDIR\)")
    with full, disk_full_as_error(tmp_path / "x"):
        raise error(errno.ENOSPC)
