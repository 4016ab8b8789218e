"""Progress reports: a rich bar on a terminal, a log line a minute elsewhere.

Whoever calls the library from a program of its own follows the same steps with `watched`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Advance = Callable[..., None]

_log = logging.getLogger(__name__)
_LOG_EVERY_S = 60.0
Tell = Callable[[str, int, int], None]


class _Watch:
    """Observer of the outermost task's progress."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.depth, self.label, self.done, self.total = tell, 0, "", 0, 0

    @contextmanager
    def following(self, advance: Advance, label: str, total: int, done: int) -> Iterator[Advance]:
        """Wrap `advance` to report the outermost task's steps, and heartbeats of inner ones."""
        outermost = self.depth == 0
        if outermost:
            self.label, self.done, self.total = label, done, total
        self.depth += 1

        def step(steps: int = 1, note: str | None = None) -> None:
            advance(steps, note)
            self.done += steps if outermost else 0
            self.tell(self.label, self.done, self.total)

        try:
            self.tell(self.label, self.done, self.total)
            yield step
        finally:
            self.depth -= 1


_watch: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(tell: Tell) -> Iterator[None]:
    """Call `tell(label, done, total)` at every step of the long tasks of this thread.

    Label and counts are of the outermost work; work inside it, too, calls `tell` at its steps. What `tell`
    raises ends the work as a kill at that moment would: with `out` the same call goes on later.
    """
    token = _watch.set(_Watch(tell))
    try:
        yield
    finally:
        _watch.reset(token)


@contextmanager
def bar(
    label: str, total: int, *, unit: str = "", done: int = 0, show: bool | None = None
) -> Iterator[Advance]:
    """Yield `advance(steps=1, note="")`; the bar shows steps, rate, time left and the last note.

    `show=None` shows it where stderr is a terminal, and elsewhere logs a line a minute. `done`
    is where resumed work starts.
    """
    with _shown(label, total, unit, done, show) as advance:
        if (watch := _watch.get()) is None:
            yield advance
            return
        with watch.following(advance, label, total, done) as step:
            yield step


@contextmanager
def _shown(label: str, total: int, unit: str, done: int, show: bool | None) -> Iterator[Advance]:
    if show is None and logging.getLogger("canvas_fm").level >= logging.WARNING:  # asked to be quiet
        show = False
    if show is None and not sys.stderr.isatty():
        yield _log_lines(label, total, unit, done)
        return
    if show is False:
        yield lambda steps=1, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        task = progress.add_task(label, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str | None = None) -> None:
            progress.update(task, advance=steps)
            if note is not None:
                progress.update(task, note=note)

        yield advance


def _log_lines(label: str, total: int, unit: str, done: int) -> Advance:
    """`advance` without a terminal: a log line a minute, none for short tasks."""
    began = last = time.monotonic()
    first, last_note = done, ""

    def advance(steps: int = 1, note: str | None = None) -> None:
        nonlocal done, last, last_note
        done, last_note = done + steps, last_note if note is None else note
        now = time.monotonic()
        if now - last >= _LOG_EVERY_S and done > first:
            last, rate = now, (done - first) / (now - began)
            left = (total - done) / rate / 60
            tail = f"; {last_note}" if last_note else ""
            _log.info("%s: %d of %d %s, %.3g/s, %.1f min left%s", label, done, total, unit, rate, left, tail)

    return advance
