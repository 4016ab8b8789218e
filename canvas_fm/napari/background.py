"""Long work of a widget in a thread: a progress bar, a button that ends it, and what it has to say."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

from magicgui.widgets import Container, Label, ProgressBar, PushButton
from napari.qt.threading import thread_worker
from qtpy.QtCore import QObject, Qt, Signal

from canvas_fm.errors import CanvasError
from canvas_fm.progress import watched


def shows_errors(method: Callable[[Any], None]) -> Callable[[Any], None]:
    """A widget's method whose CanvasError is shown in the line of text of the widget's `work`."""

    @functools.wraps(method)
    def shown(widget: Any) -> None:
        try:
            method(widget)
        except CanvasError as problem:
            widget.work.say(str(problem))

    return shown


class _Cancelled(Exception):
    pass


class _Steps(QObject):
    """Steps of the work, sent from its thread to the one that draws."""

    step = Signal(str, int, int)


class BackgroundWork(Container):
    """Runs one function at a time in a thread of napari's; `say` shows a line of text.

    Warnings that the library logs meanwhile are shown below the result, errors of the user in its place.
    """

    def __init__(self) -> None:
        self.bar = ProgressBar(value=0, max=1, visible=False)
        self.cancel = PushButton(text="Cancel", visible=False)
        self.text = text_label()
        super().__init__(widgets=[self.bar, self.cancel, self.text], labels=False)
        self._worker: Any = None
        self._steps = _Steps()
        self._steps.step.connect(self._show_step)
        self.cancel.changed.connect(lambda *_: self._worker and self._worker.quit())

    @property
    def running(self) -> bool:
        return self._worker is not None

    def say(self, text: str) -> None:
        self.text.value = text

    def run(self, label: str, work: Callable[[], Any], done: Callable[[Any], str | None]) -> None:
        """Start `work` in a thread; `done` takes its result in this one and returns what to say.

        What is running already is not started twice.
        """
        if self.running:
            return
        warnings = _Warnings()

        def step(label: str, count: int, total: int) -> None:
            if worker.abort_requested:
                raise _Cancelled
            self._steps.step.emit(label, count, total)

        def in_thread() -> Any:
            with warnings, watched(step):
                return work()

        def returned(result: Any) -> None:
            self.say("\n".join(filter(None, [done(result), *warnings.sentences])))

        def errored(problem: Exception) -> None:
            if isinstance(problem, _Cancelled):
                self.say("cancelled")
            else:
                self.say(str(problem) or type(problem).__name__)
                if not isinstance(problem, CanvasError):  # ours: napari shows the traceback
                    raise problem

        worker: Any = thread_worker(in_thread, start_thread=False, ignore_errors=True)()
        worker.returned.connect(returned)
        worker.errored.connect(errored)
        worker.finished.connect(self._finished)
        self._worker = worker
        self.bar.visible = self.cancel.visible = True
        self.bar.max, self.bar.value = 0, 0
        self.say(f"{label} …")
        worker.start()

    def _show_step(self, label: str, count: int, total: int) -> None:
        if self.running:
            self.bar.max, self.bar.value = max(total, 0), min(count, total)
            self.bar.native.setFormat(f"{label}: %v of %m")

    def _finished(self) -> None:
        self._worker = None
        self.bar.visible = self.cancel.visible = False


def text_label() -> Label:
    """A label for some lines of text, which wraps."""
    label = Label(value="")
    label.native.setWordWrap(True)
    label.min_height, label.min_width = 150, 240
    label.native.setAlignment(Qt.AlignmentFlag.AlignTop)
    return label


class _Warnings(logging.Handler):
    """Collects the library's warnings of the thread that it is entered in."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []
        self._thread = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.sentences.append(f"warning: {record.getMessage()}")

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        logging.getLogger("canvas_fm").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("canvas_fm").removeHandler(self)
