"""The leaderboard as one static page: ranked, sortable, complete without script, and without any position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from canvas_fm.evaluation.html import page, table
from canvas_fm.evaluation.leaderboard.submission import Benchmark, Entry

_SORT = Path(__file__).with_name("sort.js")
_NOTE = (
    "F1 by greedy one-to-one matching by distance, as in section 4.2.1 of the CANVAS paper. A prediction in "
    "the scored boxes that matches no true cell is false; one that matches a cell just outside is neither. "
    "Small: 95 % bootstrap interval (over the scored boxes where a marker has five or more, else over "
    "cells). Mean F1 weighs each marker alike and is given to submissions that cover them all."
)


def leaderboard_page(
    benchmark: Benchmark, entries: Sequence[Entry], left_out: Mapping[str, str], *, scored_files_at: str
) -> str:
    """The whole page; `scored_files_at` is the path from it to the folder of submissions, for links."""
    parts = [f"<h1>{escape(benchmark.title)}</h1>"]
    if benchmark.description:
        parts.append(f'<p class="lead">{escape(benchmark.description)}</p>')
    counted = f"{len(entries)} submission{'s' * (len(entries) != 1)}"
    parts.append(
        f'<p class="lead">{counted}, {len(benchmark.markers)} markers, {len(benchmark.regions)} regions.</p>'
    )
    parts.append(f"<section><h2>All markers</h2>{_overall(benchmark, entries)}")
    parts.append(f'<p class="note">{_NOTE}</p></section>')
    for marker in benchmark.markers:
        parts.append(f"<section><h2>{escape(marker)}</h2>{_marker(benchmark, entries, marker)}</section>")
    details = "".join(_details(entry, scored_files_at) for entry in entries)
    parts.append(f"<section><h2>Submissions</h2>{details or '<p>None yet.</p>'}</section>")
    if left_out:
        items = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in left_out.items())
        parts.append(f"<section><h2>Not scored</h2><ul>{items}</ul></section>")
    return page(benchmark.title, "\n".join(parts), script=_SORT.read_text(encoding="utf-8"))


def _overall(benchmark: Benchmark, entries: Sequence[Entry]) -> str:
    ranks = _ranks([None if e.scores["mean_f1"] is None else e.scores["mean_f1"]["value"] for e in entries])
    lines = []
    for rank, entry in zip(ranks, entries, strict=True):
        mean = entry.scores["mean_f1"]
        cells = [_number(rank, "{:.0f}"), _name(entry), _authors(entry)]
        cells.append(
            _number(None) if mean is None else _number(mean["value"], interval=(mean["low"], mean["high"]))
        )
        for marker in benchmark.markers:
            found = entry.scores["markers"].get(marker)
            cells.append(_number(None) if found is None else _figure(found, "f1"))
        lines.append(f"<tr>{''.join(cells)}<td>{escape(entry.card.date)}</td></tr>")
    heads = [
        "Rank",
        "Submission",
        "Authors",
        "Mean F1",
        *(f"{marker} F1" for marker in benchmark.markers),
        "Date",
    ]
    return _sortable("Ranked by the mean over markers of F1", heads, lines)


def _marker(benchmark: Benchmark, entries: Sequence[Entry], marker: str) -> str:
    regions = [region.name for region in benchmark.regions if region.marker == marker]
    covering = [entry for entry in entries if marker in entry.scores["markers"]]
    if not covering:
        return "<p>No submission covers this marker yet.</p>"
    covering.sort(key=lambda entry: -(entry.scores["markers"][marker]["f1"] or 0.0))
    ranks = _ranks([entry.scores["markers"][marker]["f1"] or 0.0 for entry in covering])
    lines = []
    for rank, entry in zip(ranks, covering, strict=True):
        found = entry.scores["markers"][marker]
        cells = [_number(rank, "{:.0f}"), _name(entry)]
        cells += [_figure(found, name) for name in ("f1", "precision", "recall", "accuracy")]
        cells += [_figure(entry.scores["regions"][region], "f1") for region in regions]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = [
        "Rank",
        "Submission",
        "F1",
        "Precision",
        "Recall",
        "Accuracy",
        *(f"{name} F1" for name in regions),
    ]
    said = {entry.scores["regions"][region]["tolerance"] for entry in covering for region in regions}
    tolerance = " or ".join(sorted(said))
    return _sortable(f"All regions of {marker} pooled, and each region; within {tolerance}", heads, lines)


def _details(entry: Entry, files_at: str) -> str:
    card, scores = entry.card, entry.scores
    facts = {
        "Method": escape(card.method),
        "Trained on": escape(", ".join(card.trained_on or [])),
        "Parameters": "" if card.parameters is None else f"{card.parameters:,}",
        "More": ""
        if card.url is None
        else f'<a href="{escape(card.url)}" rel="nofollow noopener noreferrer">{escape(card.url)}</a>',
    }
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items() if text)
    base = f"{files_at}/{quote(entry.name)}"
    files = "".join(
        f'<tr><td class="text"><a href="{base}/{quote(path)}">{escape(path)}</a></td>'
        f'<td class="text"><code>{escape(digest)}</code></td></tr>'
        for path, digest in scores["files"].items()
    )
    rows = []
    for name, found in scores["regions"].items():
        figures = [str(found[key]) for key in ("tp", "fp", "fn")]
        keys = ("f1", "optimal_f1", "chance_f1", "average_precision", "count_error")
        figures += ["–" if found[key] is None else f"{found[key]:.3f}" for key in keys]
        said = escape("; ".join(found["warnings"]))
        cells = "".join(f"<td>{figure}</td>" for figure in figures)
        rows.append(
            f'<tr><th scope="row" class="text">{escape(name)}</th>{cells}<td class="text">{said}</td></tr>'
        )
    heads = ("TP", "FP", "FN", "F1", "F1 optimal", "F1 chance", "Average precision", "Count error")
    head = '<th class="text" scope="col">Region</th>' + "".join(
        f'<th scope="col">{name}</th>' for name in heads
    )
    regions = table(
        f"{card.name} by region", f'<tr>{head}<th class="text" scope="col">Remarks</th></tr>', "".join(rows)
    )
    file_head = '<tr><th class="text" scope="col">File</th><th class="text" scope="col">sha256</th></tr>'
    again = f"canvas-fm leaderboard score BOARD --truth TRUTH --only {entry.name} --check"
    stale = "" if entry.stale is None else f"<p><strong>Out of date: {escape(entry.stale)}.</strong></p>"
    return (
        f'<details id="{escape(entry.name)}"><summary>{escape(card.name)}</summary>'
        f"{stale}<dl>{listed}</dl>{regions}"
        f"{table(f'Files of {card.name}', file_head, files, kind='narrow')}"
        f'<p class="note">Scored by canvas-fm {escape(scores["canvas_fm"])}; from these files and the truth '
        f"again: <code>{escape(again)}</code></p></details>"
    )


def _sortable(caption: str, heads: Sequence[str], lines: Sequence[str]) -> str:
    # "up": what is best read from the smallest on, and so sorted first.
    kinds = {"Submission": "text up", "Authors": "text up", "Rank": "up"}
    row = "".join(f'<th scope="col" class="{kinds.get(name, "")}">{escape(name)}</th>' for name in heads)
    return table(caption, f"<tr>{row}</tr>", "\n".join(lines), kind="sortable")


def _figure(found: Mapping[str, Any], name: str) -> str:
    interval = found["intervals"].get(name)
    return _number(found[name], interval=None if interval is None else (interval[0], interval[1]))


def _number(value: float | None, form: str = "{:.3f}", *, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return '<td data-value="">–</td>'
    shown = "" if interval is None else f" <small>{interval[0]:.3f}–{interval[1]:.3f}</small>"
    return f'<td data-value="{value!r}">{form.format(value)}{shown}</td>'


def _name(entry: Entry) -> str:
    mark = "" if entry.stale is None else " <small>out of date</small>"
    name, place = escape(entry.card.name), escape(entry.name)
    link = f'<a href="#{place}">{name}</a>'
    return f'<th scope="row" class="text" data-value="{name}">{link}{mark}</th>'


def _authors(entry: Entry) -> str:
    authors = entry.card.authors
    shown = ", ".join(authors[:3]) + (f" and {len(authors) - 3} more" if len(authors) > 3 else "")
    return f'<td class="text">{escape(shown)}</td>'


def _ranks(values: Sequence[float | None]) -> list[int | None]:
    """1 for the highest; equal values share a rank and the next one is left out."""
    known = [value for value in values if value is not None]
    return [None if value is None else 1 + sum(other > value for other in known) for value in values]
