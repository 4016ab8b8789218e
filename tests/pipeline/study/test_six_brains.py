"""A study of six brains that is killed five times ends as one that nothing disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from canvas_fm.pipeline.study.finished_steps import folder_digest, read_record
from tests.pipeline.study.tiny import write_inputs

ROOT = Path(__file__).parents[3]
STEPS = ("convert", "detect", "refine", "embed")


def run(data, out, dies_at):
    words = [
        sys.executable,
        str(Path(__file__).with_name("kill_child.py")),
        str(data),
        str(out),
        str(dies_at),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, env=environment, check=False, timeout=900, capture_output=True, text=True)


def finished(out):
    """Time and seconds of each task whose record says that it is done."""
    records = {path: read_record(path) for path in sorted(out.glob("records/*/*.json"))}
    return {
        str(path.relative_to(out)): (record.finished, record.seconds)
        for path, record in records.items()
        if record is not None and record.state == "done"
    }


def left(out):
    found = {
        str(folder.relative_to(out)): folder_digest(folder)
        for step in (*STEPS, "index")
        for folder in sorted((out / step).iterdir())
    }
    tables = [*out.glob("regions/*/regions.csv"), *out.glob("groups/groups.csv"), *out.glob("profiles/*.csv")]
    return found | {str(path.relative_to(out)): path.read_bytes() for path in tables}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_six_brains_killed_five_times(tmp_path):
    data = write_inputs(tmp_path / "inputs", 6)
    whole = run(data, tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    flushes = int(whole.stdout.split()[-1])
    before = {}
    for _ in range(5):
        killed = run(data, tmp_path / "killed", 1 + flushes // 7)
        assert killed.returncode == -9, killed.stdout + killed.stderr
        now = finished(tmp_path / "killed")
        # What was done stays as it was: it was not run again.
        assert {name: now.get(name) for name in before} == before
        assert len(now) > len(before)
        before = now
    end = run(data, tmp_path / "killed", 0)
    assert end.returncode == 0, end.stderr
    last = finished(tmp_path / "killed")
    assert {name: last[name] for name in before} == before
    tasks = 6 * 5 + 5
    assert len(last) == tasks
    assert len(end.stdout.splitlines()[0].split()) == tasks - len(before)
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
    print(f"{tasks} tasks, {flushes} flushes; done before the last run: {len(before)}")
