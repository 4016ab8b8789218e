"""Where nobody watches a bar, long work says a line a minute, and short work nothing."""

import io
import logging

from canvas_fm import progress


def test_long_work_logs_how_far_it_is_and_short_work_is_silent(monkeypatch, caplog):
    clock = iter([0.0, 30.0, 61.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, "canvas_fm"), progress.bar("reading", 244, unit="crops") as advance:
        advance(30, "loss 1.0")
        advance(31, "loss 0.5")
        advance(1)
    assert caplog.messages == ["reading: 61 of 244 crops, 1/s, 3.0 min left; loss 0.5"]


def test_a_bar_says_its_label_and_count():
    import contextlib

    seen = io.StringIO()
    with contextlib.redirect_stderr(seen), progress.bar("embedding", 3, unit="crops", show=True) as advance:
        advance(3)
    assert "embedding" in seen.getvalue()
    assert "3/3" in seen.getvalue()


def test_nothing_is_shown_where_it_is_switched_off(capsys, caplog):
    with caplog.at_level(logging.INFO), progress.bar("embedding", 3, show=False) as advance:
        advance(3, "done")
    assert capsys.readouterr().err == ""
    assert caplog.messages == []
