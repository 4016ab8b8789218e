"""The leaderboard as one static page: ranked, sortable, complete without script, without positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
        conclusion=conclusion_of(benchmark, entries),
        picture=picture_of(entries),
        benchmark=benchmark,
        entries=entries,
        overall=list(zip(ranks, entries, strict=True)),
        by_marker=[_by_marker(benchmark, entries, marker) for marker in benchmark.markers],
        left_out=left_out,
        scored_files_at=scored_files_at,
        f1_of=lambda names: [f"{name} F1" for name in names],
        script=_SORT.read_text(encoding="utf-8"),
    )


def _ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Submissions that cover all markers, the best first."""
    whole = [entry for entry in entries if entry.scores["mean_f1"] is not None]
    return sorted(whole, key=lambda entry: -entry.scores["mean_f1"]["value"])


def conclusion_of(benchmark: Benchmark, entries: Sequence[Entry]) -> str:
    """The leading submission over all markers, and whether the next one differs significantly."""
    if not entries:
        return "There is no submission yet."
    ranked = _ranked(entries)
    markers = f"{len(benchmark.markers)} marker{'' if len(benchmark.markers) == 1 else 's'}"
    if not ranked:
        return f"No submission covers all {markers} yet, so that none leads over all."
    first = ranked[0].scores["mean_f1"]
    sentence = f"{ranked[0].card.name} leads with a mean F1 of {first['value']:.3f} over {markers}"
    if len(ranked) == 1:
        others = (
            "is the only submission that covers them all" if len(entries) > 1 else "is the only submission"
        )
        return f"{sentence}; it {others}."
    second = ranked[1].scores["mean_f1"]
    apart = "are apart" if first["low"] > second["high"] else "overlap"
    return (
        f"{sentence}; {ranked[1].card.name} follows with {second['value']:.3f}, and their intervals {apart}."
    )


def picture_of(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Mean F1 of the submissions that cover all markers, as `evaluation/page/intervals.html` draws them."""
    ranked = _ranked(entries)
    return [
        {"label": entry.card.name, "strong": entry is ranked[0]}
        | {key: entry.scores["mean_f1"][key] for key in ("value", "low", "high")}
        for entry in ranked
    ]


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
