"""The cores that a process may use."""

from __future__ import annotations

import os

from canvas_fm.prepare.workers.cores import usable_cores


def test_affinity_and_quota_bound_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    quota, old = tmp_path / "cpu.max", (tmp_path / "quota", tmp_path / "period")
    assert usable_cores(quota, old) == 12
    for text, cores in (
        ("max 100000", 12),
        ("250000 100000", 3),
        ("10000 100000", 1),
        ("9900000 100000", 12),
    ):
        quota.write_text(text)
        assert usable_cores(quota, old) == cores
    quota.unlink()
    old[0].write_text("400000\n")
    old[1].write_text("100000\n")
    assert usable_cores(quota, old) == 4
    old[0].write_text("-1\n")
    assert usable_cores(quota, old) == 12
