"""What a killed process left of an atomic write is removed by the next one, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from canvas_fm.files.atomic import new_folder, write_text_atomic

WRITER = """
import os, signal, sys, time
from pathlib import Path
from canvas_fm.files.atomic import new_folder, write_atomic
def stop(path):
    (path / "half" if path.is_dir() else path).write_text("half")
    print("writing", flush=True)
    time.sleep(60)
if sys.argv[1] == "file":
    write_atomic(Path(sys.argv[2]), stop)
else:
    with new_folder(Path(sys.argv[2])) as folder:
        stop(folder)
"""


def write(kind, path):
    if kind == "file":
        write_text_atomic(path, "whole")
    else:
        with new_folder(path) as folder:
            (folder / "whole").touch()


def days_old(folder):
    for entry in folder.glob(".*"):
        for path in (entry, *entry.rglob("*")):
            os.utime(path, (time.time() - 2 * 86_400,) * 2)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_write_removes_what_a_kill_left_and_spares_a_writer_at_work(tmp_path, kind, monkeypatch):
    path = tmp_path / "cells"
    with subprocess.Popen([sys.executable, "-c", WRITER, kind, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        if kind == "folder":  # a file that is written to is never old
            days_old(tmp_path)
        write(kind, path)
        (left,) = tmp_path.glob(".cells.*.tmp")  # its writer lives
        writer.send_signal(signal.SIGKILL)
    days_old(tmp_path)
    monkeypatch.setattr("canvas_fm.files.atomic._in_folder", {})  # as another process
    write(kind, path)
    assert not left.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["cells"]


def test_a_folder_into_which_someone_still_writes_stays(tmp_path):
    room = tmp_path / ".cells.abcdefgh.tmp"
    (room / "cells").mkdir(parents=True)
    days_old(tmp_path)
    (room / "cells" / "fresh").touch()
    os.utime(room / "cells", (0, 0))
    write("folder", tmp_path / "cells")
    assert room.exists()


def test_young_and_other_names_stay(tmp_path):
    for name in (
        ".cells.abcdefgh.tmp",
        ".cells.ABCDEFGH.tmp",
        ".cells.tmp",
        ".others.abcdefgh.tmp",
        "x.abcdefgh.tmp",
    ):
        (tmp_path / name).touch()
    days_old(tmp_path)
    os.utime(tmp_path / ".cells.abcdefgh.tmp")
    before = {entry.name for entry in tmp_path.iterdir()}
    write_text_atomic(tmp_path / "cells", "whole")
    assert {entry.name for entry in tmp_path.iterdir()} == before | {"cells"}
