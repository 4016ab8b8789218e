"""One way to show that work goes on: a rich bar on stderr where a person sits, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]


@contextmanager
def bar(
    label: str, total: int, *, unit: str = "", done: int = 0, show: bool | None = None
) -> Iterator[Advance]:
    """Yield `advance(steps=1, note="")`; the bar shows steps, rate, time left and the last note.

    `show=None` shows it only where stderr is a terminal. `done` is where resumed work starts.
    """
    if not (sys.stderr.isatty() if show is None else show):
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
            fields = {} if note is None else {"note": note}
            progress.update(task, advance=steps, **fields)

        yield advance
