"""Settings of a study: its brains, and a section for each step that is wanted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, model_validator

from canvas_fm.analysis.groups.group_flags import GroupOptions
from canvas_fm.analysis.profiles.profile_flags import ProfileOptions
from canvas_fm.analysis.regions.atlas_flags import AtlasOptions
from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import AnySequence, Options, Positive
from canvas_fm.files.shipped import find
from canvas_fm.files.strict_yaml import StrictModel, read_settings
from canvas_fm.inference.detect.detect_flags import DetectOptions
from canvas_fm.inference.run_flags import DetectorRun, DeviceOptions, EmbedOptions, VoxelOptions
from canvas_fm.prepare.convert_flags import ConvertOptions

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Kind = TypeVar("Kind", bound=Options)


class ModelSettings(DeviceOptions, VoxelOptions):
    """Device and voxel size for detection, refinement and embedding alike, unless their sections differ."""


class DetectSettings(DetectOptions):
    """Detection: a detector and the options of `detect`."""

    detector: str = Field(description="a detector's folder or shipped name")


class RefineSettings(DetectorRun):
    """Refinement: a refiner and how its models are run."""

    refiner: str = Field(description="a refiner's folder or shipped name")
    encoder: str | None = Field(
        None, description="that it was fitted with; default: embed's, or a shipped one"
    )
    detector: str | None = Field(None, description="the same; default: detect's, or a shipped one")
    batch: Positive = Field(64, description="candidates at once")


class EmbedSettings(EmbedOptions):
    """Embedding: an encoder, which points, and the options of `embed`."""

    encoder: str = Field(description="an encoder's folder or shipped name")
    points: Literal["cells", "candidates"] = Field(
        "cells", description="of refined candidates those at or above the refiner's threshold, or all"
    )


class IndexSettings(Options):
    """The index over the cells of all brains."""

    metric: Literal["cosine", "l2"] = Field("cosine", description="how near is measured")


class RegionsSettings(AtlasOptions):
    """An atlas, and the way there: as the flags of `regions`."""

    atlas: str | None = Field(None, description="registration's folder, atlas' name, or label volume")


class BrainReportSettings(Options):
    """The printable page of counts on the atlas' outline: as the flags of `brain-report`."""

    scores: Annotated[tuple[str, ...], AnySequence] = Field((), description="JSON reports of `evaluate`")


class BrainSettings(StrictModel):
    """One brain: its image and group, and what differs from the study's sections."""

    source: str
    group: str | None = None
    volume: VolumeOptions = VolumeOptions.of()
    convert: ConvertOptions = ConvertOptions.of()
    regions: RegionsSettings = RegionsSettings.of()


class StudySettings(StrictModel):
    """A study.yaml: brains by name, and a section for each step; a step without one is left out."""

    title: str = "Study"
    brains: dict[str, BrainSettings] = Field(min_length=1)
    volume: VolumeOptions = VolumeOptions.of()
    models: ModelSettings = ModelSettings.of()
    convert: ConvertOptions | None = None
    detect: DetectSettings | None = None
    refine: RefineSettings | None = None
    embed: EmbedSettings | None = None
    index: IndexSettings | None = None
    regions: RegionsSettings | None = None
    groups: GroupOptions | None = None
    profiles: ProfileOptions | None = None
    brain_report: BrainReportSettings | None = None

    @model_validator(mode="after")
    def _steps_have_what_they_read(self) -> StudySettings:
        for name in self.brains:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the brain {name!r} names folders; give it letters, digits, dots, dashes, underscores"
                )
        for step, needed in (
            ("refine", "detect"), ("embed", "detect"), ("index", "embed"), ("regions", "detect"),
            ("groups", "regions"), ("profiles", "regions"), ("profiles", "embed"),
            ("brain_report", "regions"),
        ):  # fmt: skip
            if getattr(self, step) is not None and getattr(self, needed) is None:
                raise ValueError(
                    f"{step} reads what {needed} writes; add a section {needed}, or leave it out"
                )
        for name, brain in self.brains.items():
            if self.regions is not None and merged(self.regions, brain.regions).atlas is None:
                raise ValueError(
                    f"the brain {name} has no atlas; give regions: {{atlas: …}} there or for all"
                )
        compared = self.groups is not None or self.profiles is not None
        if compared and all(brain.group is None for brain in self.brains.values()):
            raise ValueError("no brain has a group; give each that is compared one, such as group: control")
        return self


def merged(general: Kind, own: Options) -> Kind:
    """The options of a section, those that are set in `own` taken from there where the section has them."""
    known = type(general).model_fields
    return general.of(
        **general.explicit | {key: value for key, value in own.explicit.items() if key in known}
    )


def with_defaults(section: Kind, general: Options) -> Kind:
    """The options of a section, with those of `general` where the section does not set them."""
    known = type(section).model_fields
    return section.of(
        **{key: value for key, value in general.explicit.items() if key in known} | section.explicit
    )


def read_study_settings(study: str | Path | StudySettings) -> StudySettings:
    """The settings of a YAML file, or of a shipped study by its name."""
    if isinstance(study, StudySettings):
        return study
    return read_settings(find("recipe", study), StudySettings)


def as_yaml(settings: StudySettings) -> str:
    """Settings as YAML."""
    content: dict[str, Any] = settings.model_dump(mode="json", exclude_unset=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def check_steps(steps: list[str], known: list[str]) -> None:
    """CanvasError for a step that the study does not have."""
    if unknown := [step for step in steps if step not in known]:
        raise CanvasError(f"the study has no step {unknown[0]}; it has {', '.join(known)}")
