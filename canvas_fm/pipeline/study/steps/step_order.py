"""The table of steps, in the order in which they run. A new step is a row here and a section of settings."""

from __future__ import annotations

from canvas_fm.pipeline.study.steps.brain_report import brain_report_external, run_brain_report
from canvas_fm.pipeline.study.steps.cells import (
    convert_external,
    detect_external,
    embed_external,
    nothing,
    refine_external,
    run_convert,
    run_detect,
    run_embed,
    run_index,
    run_refine,
)
from canvas_fm.pipeline.study.steps.page import run_report, whole_study
from canvas_fm.pipeline.study.steps.profiles import profiles_external, run_profiles
from canvas_fm.pipeline.study.steps.regions import groups_external, regions_external, run_groups, run_regions
from canvas_fm.pipeline.study.steps.study_step import Step

_RUN = frozenset({"device"})
STEPS = (
    Step(
        "convert", "{brain}.zarr", (), run_convert, convert_external,
        not_deciding=frozenset({"threads", "verify"}),
    ),
    Step("detect", "cells.csv", ("convert",), run_detect, detect_external, not_deciding=_RUN),
    Step(
        "refine", "cells.csv", ("convert", "detect"), run_refine, refine_external,
        not_deciding=_RUN | {"batch"},
    ),
    Step(
        "embed", "cells.emb.zarr", ("convert", "detect", "refine"), run_embed, embed_external,
        not_deciding=_RUN | {"batch", "backend"},
    ),
    Step("regions", "regions.csv", ("convert", "detect", "refine"), run_regions, regions_external),
    Step("index", "cells.index", ("embed",), run_index, nothing, of_brain=False),
    Step("groups", "groups.csv", ("regions",), run_groups, groups_external, of_brain=False),
    Step(
        "profiles", "profiles.csv", ("embed", "regions"), run_profiles, profiles_external, of_brain=False
    ),
    Step(
        "brain_report", "report.html", ("regions", "groups", "profiles"), run_brain_report,
        brain_report_external, of_brain=False,
    ),
    Step(
        "report", "index.html",
        (
            "convert", "detect", "refine", "embed", "regions", "index", "groups", "profiles", "brain_report",
        ),
        run_report, whole_study, of_brain=False,
    ),
)  # fmt: skip
