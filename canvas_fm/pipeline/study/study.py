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
from canvas_fm.pipeline.study.finished_steps import Record, begin, folder_digest, read_record, write_record
from canvas_fm.pipeline.study.settings import StudySettings, as_yaml, check_steps, read_study_settings
from canvas_fm.pipeline.study.steps.step_order import STEPS
from canvas_fm.pipeline.study.steps.study_step import StepRun, Study
from canvas_fm.version import __version__

_log = logging.getLogger(__name__)
STUDY = "study.yaml"


@dataclass(frozen=True)
class StudyRun:
    """Result of a call: tasks that ran, tasks done already, the error of each brain that failed."""

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
    """State of a task; `differs` are inputs that changed, or steps that have to be done before.

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
    step_runs = chosen_tasks(plan, only, start, brains)
    Path(out).mkdir(parents=True, exist_ok=True)
    lock = take_lock(plan.out, plan.out)
    try:
        write_text_atomic(plan.out / STUDY, as_yaml(plan.settings))
        return _run(plan, step_runs)
    finally:
        os.close(lock)


def chosen_tasks(
    plan: Study, only: Sequence[str] = (), start: str | None = None, brains: Sequence[str] = ()
) -> list[StepRun]:
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
        plan.step_run(step, brain)
        for brain in brains or plan.settings.brains
        for step in steps
        if step.of_brain
    ]
    # A call for some brains cannot conclude what all of them give.
    return each + ([] if brains else [plan.step_run(step, None) for step in steps if not step.of_brain])


def _run(plan: Study, step_runs: Sequence[StepRun]) -> StudyRun:
    ran: list[str] = []
    kept: list[str] = []
    failed: dict[str, str] = {}
    known: dict[str, Status] = {}
    for number, step_run in enumerate(step_runs, 1):
        if step_run.brain in failed:
            continue
        if step_run.brain is None and failed:
            break
        try:
            status = status_of(step_run, known)
            if status.state == "done":
                kept.append(str(step_run))
                continue
            _log.info("%s (%d of %d)", step_run, number, len(step_runs))
            known[str(step_run)] = _work(step_run, status)
        except StorageFull:
            raise
        except CanvasError as problem:
            if step_run.brain is None:
                raise
            _log.error("%s: %s", step_run, problem)
            failed[step_run.brain] = f"{step_run.step.name}: {problem}"
            continue
        ran.append(str(step_run))
    return StudyRun(plan.out, tuple(ran), tuple(kept), failed)


def _work(step_run: StepRun, status: Status) -> Status:
    if status.inputs is None:
        raise CanvasError(
            f"{step_run} reads {', '.join(status.differs)}, which is not up to date; run that step too"
        )
    begin(step_run.folder, step_run.record_path, status.inputs)
    began = time.monotonic()
    result = step_run.step.run(step_run)
    seconds, finished = time.monotonic() - began, datetime.now(UTC).isoformat(timespec="seconds")
    files = folder_digest(step_run.folder)
    write_record(
        step_run.record_path, Record("done", status.inputs, files, result, round(seconds, 3), finished)
    )
    return Status("done", status.inputs, files=files)


def status_of(step_run: StepRun, known: dict[str, Status] | None = None) -> Status:
    """Compare a task's record with its inputs and files as they are now; `known` are those of this call."""
    known = {} if known is None else known
    if str(step_run) not in known:
        known[str(step_run)] = _compare(step_run, known)
    return known[str(step_run)]


def _compare(step_run: StepRun, known: dict[str, Status]) -> Status:
    upstream = {str(step): status_of(step, known) for step in _upstream(step_run)}
    if waits := tuple(name for name, status in upstream.items() if status.state != "done"):
        return Status("waits", None, waits)
    reads = {name: status.files for name, status in upstream.items()}
    inputs: dict[str, Any] = {"canvas_fm": __version__, **step_run.step.external(step_run), **reads}
    inputs |= {} if step_run.step.name == "report" else {"settings": step_run.deciding()}
    inputs = json.loads(json.dumps(inputs))
    record = read_record(step_run.record_path)
    if record is None or record.state == "outdated":
        return Status("new", inputs)
    complete = record.state == "done" and step_run.out.exists()
    if complete and folder_digest(step_run.folder) != record.files:
        raise CanvasError(
            f"{step_run.folder} is not as the study wrote it; if that was you, keep a copy elsewhere, "
            "and delete the folder to have it made again"
        )
    if differs := tuple(record.differing(inputs)):
        return Status("again", inputs, differs)
    if record.state == "begun":
        return Status("resume", inputs)
    if not complete:
        return Status("again", inputs, ("its files, which are gone",))
    return Status("done", inputs, files=record.files)


def _upstream(step_run: StepRun) -> Iterator[StepRun]:
    """Tasks whose results a task reads: of its brain, or of all."""
    plan = step_run.study
    for step in STEPS:
        if step.name in step_run.step.reads and plan.has(step.name):
            for brain in (
                [step_run.brain] if step.of_brain and step_run.brain is not None else step_run.brains()
            ):
                yield plan.step_run(step, brain)
                if not step.of_brain:
                    break
