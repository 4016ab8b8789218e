"""The leaderboard: a folder of submissions, scored against ground truth stored elsewhere and never published.

BOARD/benchmark.yaml                      the regions, public
BOARD/submissions/NAME/card.yaml, cells/  what was handed in, unchanged
BOARD/scores/NAME.json                    counts and figures by region, with the sha256 of every file scored
BOARD/index.html                          the page
TRUTH/REGION.csv                          anywhere outside BOARD
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from canvas_fm.data.points.formats.read_write import suffixes
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError, counted
from canvas_fm.evaluation.detection.confusion_counts import Counts, counts_array, intervals, mean_f1, pooled
from canvas_fm.evaluation.detection.score import Score, evaluate
from canvas_fm.evaluation.leaderboard.page import leaderboard_page
from canvas_fm.evaluation.leaderboard.submission import (
    BENCHMARK,
    CARD,
    CELLS,
    Benchmark,
    BoardRegion,
    Entry,
    Submission,
    check_submission,
    read_benchmark,
    regions_boxes,
)
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.checksum import sha256
from canvas_fm.progress import bar
from canvas_fm.version import __version__

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def submit(folder: str | Path, board: str | Path, *, name: str | None = None, replace: bool = False) -> Path:
    """Validate a submission and copy it into the board atomically; returns its new folder.

    Raises CanvasError with the number of faults (`check_submission` lists them), for a name that is taken
    unless `replace`, and for one that is no plain name.
    """
    board = Path(board)
    name = Path(folder).resolve().name.lower() if name is None else name
    if not _NAME.fullmatch(name):
        raise CanvasError(f"{name!r} cannot name a submission; expected a-z, 0-9, '.', '_', '-' (--name)")
    submission, faults = check_submission(folder, board)
    if submission is None:
        raise CanvasError(
            f"{folder}: {counted(len(faults), 'fault')}, nothing was submitted; the first: {faults[0]}"
        )
    target = board / "submissions" / name
    if target.exists() and not replace:
        raise CanvasError(
            f"a submission called {name!r} is there already; choose another --name, or --overwrite"
        )
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=target.parent) as temporary:
        copy = Path(temporary) / name
        (copy / CELLS).mkdir(parents=True)
        shutil.copyfile(submission.folder / CARD, copy / CARD)
        for path in submission.cells.values():
            shutil.copyfile(path, copy / CELLS / path.name)
        if target.exists():
            target.rename(Path(temporary) / "replaced")
        copy.rename(target)
    return target


def score_board(
    board: str | Path,
    truth: str | Path,
    *,
    only: str | None = None,
    check: bool = False,
    report: Callable[[str, list[str]], None] | None = None,
    show: bool | None = None,
) -> list[str]:
    """Score every submission, or `only` one, against TRUTH/REGION.*; returns the names scored.

    What is stored holds counts, figures and checksums, no position. With `check` nothing is stored: the
    scores are worked out again and CanvasError names those that differ. Submissions with faults are passed
    over and given to `report`.
    """
    board, truth = Path(board), Path(truth)
    benchmark = read_benchmark(board)
    truths = _truth_files(board, truth, benchmark)
    names = _submissions(board)
    if only is not None and only not in names:
        raise CanvasError(f"{board} has no submission called {only!r}; it has {', '.join(names)}")
    names = names if only is None else [only]
    done, different = [], []
    with bar("scoring", len(names), unit="submissions", show=show) as advance:
        for name in names:
            submission, faults = check_submission(board / "submissions" / name, board)
            if submission is None:
                if report is not None:
                    report(name, faults)
            else:
                scores = _score(submission, board, benchmark, truths)
                path = board / "scores" / f"{name}.json"
                if check:
                    if not path.is_file() or _read_scores(path) != scores:
                        different.append(name)
                else:
                    path.parent.mkdir(exist_ok=True)
                    write_text_atomic(path, json.dumps(scores, indent=1, allow_nan=False) + "\n")
                done.append(name)
            advance(1, name)
    if different:
        raise CanvasError(
            f"scored again, these differ from what is stored: {', '.join(different)}; score the board"
        )
    return done


def read_entries(board: str | Path) -> tuple[Benchmark, list[Entry], dict[str, str]]:
    """The benchmark, its scored submissions in falling order, and why others are excluded."""
    board = Path(board)
    benchmark = read_benchmark(board)
    entries, left_out = [], {}
    for name in _submissions(board):
        submission, faults = check_submission(board / "submissions" / name, board)
        path = board / "scores" / f"{name}.json"
        if submission is None:
            left_out[name] = f"{counted(len(faults), 'fault')}; the first: {faults[0]}"
        elif not path.is_file():
            left_out[name] = "not scored yet"
        else:
            scores = _read_scores(path)
            stale = None
            if scores["files"] != submission.files:
                stale = "its files are not those that were scored"
            elif scores["benchmark_sha256"] != sha256(board / BENCHMARK):
                stale = "the benchmark has changed since"
            entries.append(Entry(name, submission.card, scores, stale))
    entries.sort(key=lambda entry: (entry.scores["mean_f1"] is None, -_first(entry), entry.name))
    return benchmark, entries, left_out


def write_page(board: str | Path, out: str | Path | None = None) -> Path:
    """Write the board's page (default index.html in it); returns its path."""
    board = Path(board)
    out = board / "index.html" if out is None else Path(out)
    files_at = Path(os.path.relpath((board / "submissions").resolve(), out.resolve().parent)).as_posix()
    write_text_atomic(out, leaderboard_page(*read_entries(board), scored_files_at=files_at))
    return out


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise CanvasError(f"{path} is damaged: {problem}; delete it and score the board again") from problem
    return dict(scores)


def _first(entry: Entry) -> float:
    mean = entry.scores["mean_f1"]
    return float(mean["value"]) if mean else max(m["f1"] or 0.0 for m in entry.scores["markers"].values())


def _submissions(board: Path) -> list[str]:
    folder = board / "submissions"
    folders = (
        sorted(path.name for path in folder.glob("*") if _NAME.fullmatch(path.name))
        if folder.is_dir()
        else []
    )
    if not folders:
        raise CanvasError(f"{board} has no submissions yet; add one with `canvas-fm leaderboard submit`")
    return folders


def _truth_files(board: Path, truth: Path, benchmark: Benchmark) -> dict[str, Path]:
    """Truth file of every region; refused if it lies inside the board, which is published."""
    if not truth.is_dir():
        raise CanvasError(f"no truth at {truth}; expected a folder with one file a region, REGION.csv")
    if truth.resolve().is_relative_to(board.resolve()):
        raise CanvasError(f"{truth} lies inside {board}, which is published; keep the truth elsewhere")
    truth_files = {}
    for region in benchmark.regions:
        paths = [path for path in sorted(truth.glob(f"{region.name}.*")) if path.suffix.lower() in suffixes()]
        paths = [path for path in paths if path.stem == region.name]
        if len(paths) != 1:
            raise CanvasError(
                f"{truth} has {len(paths)} files for region {region.name}; expected one, {region.name}.csv"
            )
        if paths[0].resolve().is_relative_to(board.resolve()):
            raise CanvasError(
                f"{paths[0]} is a link into {board}, which is published; keep the truth elsewhere"
            )
        truth_files[region.name] = paths[0]
    return truth_files


def _score(
    submission: Submission, board: Path, benchmark: Benchmark, truths: dict[str, Path]
) -> dict[str, Any]:
    by_region: dict[str, Any] = {}
    parts: dict[str, list[Counts]] = {}
    for region in benchmark.regions:
        if region.name in submission.cells:
            score = _evaluate(submission.cells[region.name], truths[region.name], region, board, benchmark)
            by_region[region.name] = {"marker": region.marker, **_published(score)}
            parts.setdefault(region.marker, []).extend(score.box_counts)
    tables = {marker: counts_array(counts) for marker, counts in parts.items()}
    markers = {
        marker: {**pooled(counts).as_dict(), "intervals": intervals(tables[marker]).as_dict()}
        for marker, counts in parts.items()
    }
    mean = None
    if set(parts) == set(benchmark.markers):
        value, low, high = mean_f1([tables[marker] for marker in benchmark.markers])
        mean = {"value": value, "low": low, "high": high}
    scores = {
        "canvas_fm": __version__,
        "benchmark_sha256": sha256(board / BENCHMARK),
        "files": submission.files,
        "truth_sha256": {name: sha256(truths[name]) for name in by_region},
        "mean_f1": mean,
        "markers": markers,
        "regions": by_region,
    }
    return dict(json.loads(json.dumps(scores)))  # as it will be read again: tuples are lists


def _evaluate(cells: Path, truth: Path, region: BoardRegion, board: Path, benchmark: Benchmark) -> Score:
    um, voxels = region.tolerance_um, region.tolerance_voxels
    if um is None and voxels is None:
        um, voxels = benchmark.tolerance_um, benchmark.tolerance_voxels
    return evaluate(
        Points.read(cells),
        Points.read(truth),
        voxel_um=region.voxel_um or benchmark.voxel_um,
        tolerance_um=um,
        tolerance_voxels=voxels,
        marker=region.marker if um is None and voxels is None else None,
        within=regions_boxes(board, region),
        shape_zyx=region.shape_zyx,
    )


def _published(score: Score) -> dict[str, Any]:
    """The publishable part of a score: no positions, no threshold tuned on the truth."""
    whole = score.to_json()
    published = (
        "tp",
        "fp",
        "fn",
        "accuracy",
        "precision",
        "recall",
        "f1",
        "count_error",
        "average_precision",
    )
    return {
        **{name: whole[name] for name in published},
        "intervals": whole["intervals"],
        "tolerance": str(score.tolerance),
        "optimal_f1": None if score.optimal is None else score.optimal.f1,
        "chance_f1": None if score.chance is None else score.chance.f1,
        "warnings": whole["warnings"],
    }
