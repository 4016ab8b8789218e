"""Report of the corrections of a channel: numbers, and a figure of planes before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Num
from scipy.ndimage import gaussian_filter, maximum_filter

from canvas_fm.files.atomic import write_atomic, write_text_atomic
from canvas_fm.prepare.corrections.corrections import Correction
from canvas_fm.prepare.corrections.destripe import decibels, stripe_energy
from canvas_fm.prepare.corrections.flat_field.reduced import dark_value
from canvas_fm.prepare.corrections.sample_planes import sample_planes
from canvas_fm.prepare.sources.source import Source

_PLANES = 5
_PEAK_SIZE = 7  # voxels: one peak in a box of so many
_MOVED = 1.5  # voxels


def report_corrections(source: Source, corrections: list[Correction], out: Path) -> dict[str, Any]:
    """Write `OUT.corrections.json` and `.png` beside a store; the numbers of each channel."""
    numbers, shown = {}, []
    for name, voxels, correction in zip(source.names, source.channels, corrections, strict=True):
        planes = sample_planes(voxels, _PLANES)
        dark = dark_value(planes)
        corrected = [correction.apply(plane) for plane in planes]
        numbers[name] = _numbers(planes, corrected, dark, correction)
        middle = len(planes) // 2
        shown.append((name, planes[middle], corrected[middle], numbers[name]))
    stem = out.with_suffix("")
    write_text_atomic(stem.with_name(stem.name + ".corrections.json"), json.dumps(numbers, indent=1) + "\n")
    _draw(shown, stem.with_name(stem.name + ".corrections.png"))
    return numbers


def _numbers(
    planes: list[np.ndarray], corrected: list[np.ndarray], dark: float, correction: Correction
) -> dict[str, Any]:
    numbers: dict[str, Any] = {"dark": dark}
    if correction.destriper is not None:
        for axis in correction.destriper.options.stripes_along:
            before, after = (
                float(np.mean([stripe_energy(plane.astype(np.float32), dark, axis) for plane in stack]))
                for stack in (planes, corrected)
            )
            numbers[f"stripes along {axis}, dB removed"] = decibels(before, after)
    if correction.flat_field is not None:
        flat = correction.flat_field.flat
        numbers["shading, darkest to brightest"] = [float(flat.min()), float(flat.max())]
    heights, kept, count = [], 0, 0
    for plane, mended in zip(planes, corrected, strict=True):
        ratio, stayed = compare_peaks(plane, mended, dark)
        heights.append(ratio)
        kept, count = kept + int(stayed.sum()), count + len(stayed)
    ratios = np.concatenate(heights)
    numbers |= {
        "peaks": count,
        "peaks in their place": kept / count if count else None,
        "peak height after / before, median": float(np.median(ratios)) if count else None,
    }
    return numbers


def compare_peaks(
    before: Num[np.ndarray, "y x"], after: Num[np.ndarray, "y x"], dark: float
) -> tuple[Float32[np.ndarray, " n"], np.ndarray]:
    """Of each peak of a plane its height afterwards, relative, and whether a peak is still in its place."""
    first, second = (gaussian_filter(plane.astype(np.float32) - dark, 1) for plane in (before, after))
    around = gaussian_filter(first, 10)
    bright = first > around + 15 * np.median(np.abs(first - around)) + 1e-6
    peaks = np.argwhere((first == maximum_filter(first, _PEAK_SIZE)) & bright)
    reach = int(2 * _MOVED) | 1
    highest = maximum_filter(second, reach)
    local = (second == maximum_filter(second, _PEAK_SIZE)).astype(np.uint8)
    y, x = peaks.T
    return highest[y, x] / first[y, x], maximum_filter(local, reach)[y, x] > 0


def _in_words(numbers: dict[str, Any]) -> str:
    words = [
        f"{value:.1f} dB along {key[14]}" for key, value in numbers.items() if key.endswith("dB removed")
    ]
    if (height := numbers["peak height after / before, median"]) is not None:
        words.append(f"peak height × {height:.3f}, {numbers['peaks in their place']:.1%} in place")
    return "; ".join(words) or "rows"


def _draw(shown: list[tuple[str, np.ndarray, np.ndarray, dict[str, Any]]], path: Path) -> None:
    """A row for each channel: the plane before and after, and the medians of their rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 3, squeeze=False, width_ratios=(1, 1, 0.8))
    for row, (name, before, after, numbers) in zip(axes, shown, strict=True):
        low, high = np.percentile(before, (0.5, 99.5))
        for axis, plane, title in ((row[0], before, f"{name}, before"), (row[1], after, "after")):
            axis.imshow(plane, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(title.replace("$", r"\$"))
            axis.set_axis_off()
        for plane, label in ((before, "before"), (after, "after")):
            row[2].plot(np.median(plane, axis=1), linewidth=0.8, label=label)
        row[2].set_xlabel("row y (voxels)")
        row[2].set_ylabel("median of the row")
        row[2].legend(frameon=False)
        removed = [
            f"{value:.1f} dB along {key[14]}" for key, value in numbers.items() if key.endswith("dB removed")
        ]
        height = numbers["peak height after / before, median"]
        kept = (
            ""
            if height is None
            else f"peak height × {height:.3f}, {numbers['peaks in their place']:.1%} in place"
        )
        row[2].set_title("; ".join([*removed, kept]) or "rows", fontsize=9)
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
