"""The page of a study: counts of its brains, a plane of each, regions, groups, every step and its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canvas_fm.evaluation.page.html import png_data, render
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.version import __version__
from canvas_fm.viewing.brain_report.report import conclusion_of


@dataclass(frozen=True)
class BrainSection:
    """One brain on the page; pictures are PNG."""

    name: str
    group: str
    facts: dict[str, str]
    picture: bytes | None = None
    picture_shows: str = ""
    corrections: bytes | None = None
    regions: Sequence[dict[str, Any]] = ()
    warnings: Sequence[str] = ()

    @property
    def intervals(self) -> bool:
        """Whether any region has an interval to show."""
        return any(row["interval"] for row in self.regions)


@dataclass(frozen=True)
class StudyPage:
    """Contents of a study's page."""

    title: str
    counts: Sequence[dict[str, str]]
    brains: Sequence[BrainSection]
    steps: Sequence[dict[str, str]]
    settings: str
    figure: bytes | None = None
    groups: dict[str, Any] | None = None
    index: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def has_intervals(self) -> bool:
        """Whether any brain's count has an interval to show."""
        return any(row.get("interval") for row in self.counts)


def write_study_page(page: StudyPage, out: str | Path) -> Path:
    """Write the page: one file without scripts, which prints."""
    text = render(
        "viewing/brain_report/study_page.html",
        title=page.title,
        conclusion=conclusion_of([(f"{row['brain']}:", row["count"]) for row in page.counts], page.groups),
        page=page,
        png=png_data,
        version=__version__,
    )
    write_text_atomic(Path(out), text)
    return Path(out)
