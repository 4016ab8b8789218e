"""The leaderboard as one static page: ranked, sortable, complete without script, without positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from canvas_fm.evaluation.leaderboard.submission import Benchmark, Entry
from canvas_fm.evaluation.page.html import render

_SORT = Path(__file__).with_name("sort.js")


def leaderboard_page(
    benchmark: Benchmark, entries: Sequence[Entry], left_out: Mapping[str, str], *, scored_files_at: str
) -> str:
    """HTML of the page; `scored_files_at` is the relative path to the submissions, for links."""
    means = [entry.scores["mean_f1"] for entry in entries]
    ranks = _ranks([None if mean is None else mean["value"] for mean in means])
    return render(
        "evaluation/leaderboard/page.html",
        title=benchmark.title,
        benchmark=benchmark,
        entries=entries,
        overall=list(zip(ranks, entries, strict=True)),
        by_marker=[_by_marker(benchmark, entries, marker) for marker in benchmark.markers],
        left_out=left_out,
        scored_files_at=scored_files_at,
        f1_of=lambda names: [f"{name} F1" for name in names],
        script=_SORT.read_text(encoding="utf-8"),
    )


def _by_marker(
    benchmark: Benchmark, entries: Sequence[Entry], marker: str
) -> tuple[str, list[str], list[tuple[int | None, Entry]], str]:
    """(marker, its regions, entries by rank, tolerance)."""

    def f1(entry: Entry) -> float:
        return entry.scores["markers"][marker]["f1"] or 0.0

    regions = [region.name for region in benchmark.regions if region.marker == marker]
    covering = sorted((e for e in entries if marker in e.scores["markers"]), key=f1, reverse=True)
    tolerances = {entry.scores["regions"][region]["tolerance"] for entry in covering for region in regions}
    ranked = list(zip(_ranks([f1(entry) for entry in covering]), covering, strict=True))
    return marker, regions, ranked, " or ".join(sorted(tolerances))


def _ranks(values: Sequence[float | None]) -> list[int | None]:
    """Competition ranks: 1 for the highest, equal values share a rank."""
    known = [value for value in values if value is not None]
    return [None if value is None else 1 + sum(other > value for other in known) for value in values]
