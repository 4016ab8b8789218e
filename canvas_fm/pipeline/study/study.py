"""Run a study, resumably: every step of every brain once, outdated results made anew."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from canvas_fm.errors import CanvasError, StorageFull
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.locks import take_lock
from canvas_fm.pipeline.study.records import (
    Record,
    begin,
    folder_digest,
    read_record,
    write_record,
)
from canvas_fm.pipeline.study.settings import StudySettings, as_yaml, check_steps, read_study_settings
from canvas_fm.pipeline.study.steps.step import Study, Task
from canvas_fm.pipeline.study.steps.table import STEPS
from canvas_fm.version import __version__

_log = logging.getLogger(__name__)
STUDY = "study.yaml"


@dataclass(frozen=True)
class StudyRun:
    """What a call did: tasks that ran, tasks that were done already, the error of each brain that failed."""

    out: Path
    ran: tuple[str, ...]
    kept: tuple[str, ...]
    failed: dict[str, str]

    @property
    def page(self) -> Path:
        """The page of the study."""
        return self.out / "report" / "index.html"


@dataclass(frozen=True)
class Status:
    """How a task stands; `differs` are inputs that changed, or steps that have to be done before.

    `files` is the digest of what it wrote, once it is done.
    """

    state: Literal["done", "new", "resume", "again", "waits"]
    inputs: dict[str, Any] | None
    differs: tuple[str, ...] = ()
    files: str = ""


def study(
    settings: str | Path | StudySettings,
    out: str | Path,
    *,
    data: str | Path = ".",
    only: Sequence[str] = (),
    start: str | None = None,
    brains: Sequence[str] = (),
    workers: int = 1,
    scheduler: str | None = None,
) -> StudyRun:
    """Run the steps of a study that are not done yet; the same call again resumes.

    `settings` is a YAML file or a shipped name; its relative paths start from `data`. Each step leaves a
    record of its inputs (settings, source files, models, results that it reads, version) and of its files:
    what is done with the same inputs is not done again, what has other inputs is. `only` are steps, `start`
    the first one, `brains` those that run; what other steps left has to be up to date. A brain that fails
    does not stop the others. Raises CanvasError for settings that do not fit, and for files that were changed
    by others.
    """
    plan = Study(
        read_study_settings(settings), Path(data), Path(out), {"workers": workers, "scheduler": scheduler}
    )
    tasks = chosen_tasks(plan, only, start, brains)
    Path(out).mkdir(parents=True, exist_ok=True)
    lock = take_lock(plan.out, plan.out)
    try:
        write_text_atomic(plan.out / STUDY, as_yaml(plan.settings))
        return _run(plan, tasks)
    finally:
        os.close(lock)


def chosen_tasks(
    plan: Study, only: Sequence[str] = (), start: str | None = None, brains: Sequence[str] = ()
) -> list[Task]:
    """The tasks of a call, brain by brain, then those of all brains."""
    steps = [step for step in STEPS if plan.has(step.name)]
    names = [step.name for step in steps]
    check_steps([*only, *([start] if start else [])], names)
    if unknown := [brain for brain in brains if brain not in plan.settings.brains]:
        raise CanvasError(f"the study has no brain {unknown[0]}; it has {', '.join(plan.settings.brains)}")
    if start is not None:
        steps = steps[names.index(start) :]
    steps = [step for step in steps if not only or step.name in only]
    each = [
        plan.task(step, brain) for brain in brains or plan.settings.brains for step in steps if step.of_brain
    ]
    # A call for some brains cannot conclude what all of them give.
    return each + ([] if brains else [plan.task(step, None) for step in steps if not step.of_brain])


def _run(plan: Study, tasks: Sequence[Task]) -> StudyRun:
    ran: list[str] = []
    kept: list[str] = []
    failed: dict[str, str] = {}
    known: dict[str, Status] = {}
    for number, task in enumerate(tasks, 1):
        if task.brain in failed:
            continue
        if task.brain is None and failed:
            break
        try:
            status = status_of(task, known)
            if status.state == "done":
                kept.append(str(task))
                continue
            _log.info("%s (%d of %d)", task, number, len(tasks))
            known[str(task)] = _work(task, status)
        except StorageFull:
            raise
        except CanvasError as problem:
            if task.brain is None:
                raise
            _log.error("%s: %s", task, problem)
            failed[task.brain] = f"{task.step.name}: {problem}"
            continue
        ran.append(str(task))
    return StudyRun(plan.out, tuple(ran), tuple(kept), failed)


def _work(task: Task, status: Status) -> Status:
    if status.inputs is None:
        raise CanvasError(
            f"{task} reads {', '.join(status.differs)}, which is not up to date; run that step too"
        )
    begin(task.folder, task.record_path, status.inputs)
    began = time.monotonic()
    result = task.step.run(task)
    seconds, finished = time.monotonic() - began, datetime.now(UTC).isoformat(timespec="seconds")
    files = folder_digest(task.folder)
    write_record(task.record_path, Record("done", status.inputs, files, result, round(seconds, 3), finished))
    return Status("done", status.inputs, files=files)


def status_of(task: Task, known: dict[str, Status] | None = None) -> Status:
    """Compare a task's record with its inputs and files as they are now; `known` are those of this call."""
    known = {} if known is None else known
    if str(task) not in known:
        known[str(task)] = _compare(task, known)
    return known[str(task)]


def _compare(task: Task, known: dict[str, Status]) -> Status:
    upstream = {str(one): status_of(one, known) for one in _upstream(task)}
    if waits := tuple(name for name, status in upstream.items() if status.state != "done"):
        return Status("waits", None, waits)
    reads = {name: status.files for name, status in upstream.items()}
    inputs: dict[str, Any] = {"canvas_fm": __version__, **task.step.external(task), **reads}
    inputs |= {} if task.step.name == "report" else {"settings": task.deciding()}
    inputs = json.loads(json.dumps(inputs))
    record = read_record(task.record_path)
    if record is None or record.state == "outdated":
        return Status("new", inputs)
    there = record.state == "done" and task.out.exists()
    if there and folder_digest(task.folder) != record.files:
        raise CanvasError(
            f"{task.folder} is not as the study wrote it; if that was you, keep a copy elsewhere, and delete "
            "the folder to have it made again"
        )
    if differs := tuple(record.differing(inputs)):
        return Status("again", inputs, differs)
    if record.state == "begun":
        return Status("resume", inputs)
    if not there:
        return Status("again", inputs, ("its files, which are gone",))
    return Status("done", inputs, files=record.files)


def _upstream(task: Task) -> Iterator[Task]:
    """Tasks whose results a task reads: of its brain, or of all."""
    plan = task.study
    for step in STEPS:
        if step.name in task.step.reads and plan.has(step.name):
            for brain in [task.brain] if step.of_brain and task.brain is not None else task.brains():
                yield plan.task(step, brain)
                if not step.of_brain:
                    break
