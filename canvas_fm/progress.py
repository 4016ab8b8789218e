"""One way to show that work goes on: a rich bar where a person sits, a log line a minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]

_log = logging.getLogger(__name__)
_LOG_EVERY_S = 60.0


@contextmanager
def bar(
    label: str, total: int, *, unit: str = "", done: int = 0, show: bool | None = None
) -> Iterator[Advance]:
    """Yield `advance(steps=1, note="")`; the bar shows steps, rate, time left and the last note.

    `show=None` shows it where stderr is a terminal, and elsewhere logs a line a minute. `done`
    is where resumed work starts.
    """
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
    """`advance` for where nobody watches a bar: a log line a minute, none for work that is done sooner."""
    began = last = time.monotonic()
    first, said = done, ""

    def advance(steps: int = 1, note: str | None = None) -> None:
        nonlocal done, last, said
        done, said = done + steps, said if note is None else note
        now = time.monotonic()
        if now - last >= _LOG_EVERY_S and done > first:
            last, rate = now, (done - first) / (now - began)
            left = (total - done) / rate / 60
            tail = f"; {said}" if said else ""
            _log.info("%s: %d of %d %s, %.3g/s, %.1f min left%s", label, done, total, unit, rate, left, tail)

    return advance
