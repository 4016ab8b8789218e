"""Where nobody watches a bar, long work says a line a minute, and short work nothing."""

import io
import logging

import pytest

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


def test_who_watches_is_told_of_the_outermost_work_at_every_step():
    told = []
    with progress.watched(lambda *said: told.append(said)):
        with progress.bar("blocks", 8, done=2, show=False) as advance:
            with progress.bar("crops", 99, show=False) as inner:
                inner(50)
            advance(6)
        with progress.bar("more", 1, show=False) as advance:
            advance()
    with progress.bar("alone", 5, show=False) as advance:
        advance(5)
    blocks = [("blocks", 2, 8)] * 3 + [("blocks", 8, 8)]
    assert told == [*blocks, ("more", 0, 1), ("more", 1, 1)]


def test_what_the_watcher_raises_ends_the_work():
    def stop(label, done, total):
        if done == 2:
            raise KeyboardInterrupt

    done = []

    def work():
        with progress.bar("x", 5, show=False) as step:
            for number in range(5):
                step()
                done.append(number)

    with pytest.raises(KeyboardInterrupt), progress.watched(stop):
        work()
    assert done == [0]
