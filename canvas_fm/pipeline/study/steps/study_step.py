"""A step of a study, and its work on one brain or on all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.pipeline.study.finished_steps import read_record
from canvas_fm.pipeline.study.settings import BrainSettings, StudySettings, merged, with_defaults


@dataclass(frozen=True)
class Step:
    """A row of the table of steps.

    `output` is the name of what it writes in its folder, `reads` the steps whose results it takes,
    `external` what else decides the result (identity of source files and models), `run` the work, which
    returns what the page shows of it. `not_deciding` are options that leave the result as it is.
    """

    name: str
    output: str
    reads: tuple[str, ...]
    run: Callable[[StepRun], dict[str, Any]]
    external: Callable[[StepRun], dict[str, Any]]
    of_brain: bool = True
    not_deciding: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Study:
    """Settings, the folder that relative paths start from, the folder of results, and how work is spread."""

    settings: StudySettings
    data: Path
    out: Path
    running: Mapping[str, Any] = field(default_factory=dict)

    def path(self, text: str | Path) -> str:
        """A path of the settings; names (of models, samples, atlases) stay as they are."""
        in_data = self.data / text
        return str(in_data) if in_data.exists() or str(text).startswith((".", "/")) else str(text)

    def has(self, step: str) -> bool:
        """Whether the study has a section for a step; the page is always there."""
        return step == "report" or getattr(self.settings, step) is not None

    def step_run(self, step: Step, brain: str | None) -> StepRun:
        """A step's work on a brain."""
        return StepRun(self, step, brain if step.of_brain else None)


@dataclass(frozen=True)
class StepRun:
    """The work of a step on one brain; on all where `brain` is None."""

    study: Study
    step: Step
    brain: str | None

    def __str__(self) -> str:
        return self.step.name if self.brain is None else f"{self.step.name} of {self.brain}"

    @property
    def folder(self) -> Path:
        """The folder that belongs to this work alone."""
        return self.folder_of(self.step.name, self.brain)

    @property
    def out(self) -> Path:
        """Outputs of the step."""
        return self.folder / self.step.output.format(brain=self.brain)

    @property
    def record_path(self) -> Path:
        """The file of what this work left."""
        return self.study.out / "records" / self.step.name / f"{self.brain or 'all'}.json"

    def folder_of(self, step: str, brain: str | None) -> Path:
        """The folder of another step's work."""
        return self.study.out / step / (brain or "")

    @cached_property
    def settings(self) -> Any:
        """The step's options, a brain's own among them, models' device and voxel size filled in."""
        section = getattr(self.study.settings, self.step.name)
        own = getattr(self.brain_settings, self.step.name, None) if self.brain else None
        section = section if own is None else merged(section, own)
        return with_defaults(section, self.study.settings.models)

    @property
    def brain_settings(self) -> BrainSettings:
        """The settings of the brain."""
        assert self.brain is not None
        return self.study.settings.brains[self.brain]

    def options(self, *omit: str) -> dict[str, Any]:
        """Explicit options of the step, as keyword arguments."""
        return {key: value for key, value in self.settings.explicit.items() if key not in omit}

    def deciding(self) -> dict[str, Any]:
        """All options of the step that decide its result, defaults among them."""
        deciding: dict[str, Any] = self.settings.model_dump(mode="json", exclude=set(self.step.not_deciding))
        return deciding

    def volume(self) -> Volume:
        """The brain's volume: what `convert` wrote, else its source."""
        options = merged(self.study.settings.volume, self.brain_settings.volume).explicit
        path: str | Path = self.study.path(self.brain_settings.source)
        if self.study.has("convert"):
            path = self.folder_of("convert", self.brain) / f"{self.brain}.zarr"
            options.pop("voxel_um", None)  # which the converted store states
        return Volume.open(path, **options)

    def cells_path(self) -> Path:
        """The brain's table of cells: refined where the study refines."""
        step = "refine" if self.study.has("refine") else "detect"
        return self.folder_of(step, self.brain) / "cells.csv"

    def result_of(self, step: str, brain: str | None) -> dict[str, Any]:
        """Record of a finished step."""
        path = self.study.out / "records" / step / f"{brain or 'all'}.json"
        record = read_record(path)
        if record is None or record.state != "done":
            raise CanvasError(f"{step} of {brain} is not done; run it first")
        return record.result

    def brains(self) -> Sequence[str]:
        """The names of all brains."""
        return list(self.study.settings.brains)
