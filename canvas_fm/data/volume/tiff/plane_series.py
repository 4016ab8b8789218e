"""The planes of one channel in a folder of TIFF planes, by the numbers in their file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from canvas_fm.data.volume.tiff.plane_numbers import PLANE, Named, parse_one_stack
from canvas_fm.errors import CanvasError

_CHANNEL = re.compile(r"(?<![a-z])ch?(?:annel)?[ _]?(\d+)", re.IGNORECASE)
GAP = 1.6  # of the smallest step: a rounded step of 2 or more varies by less, a lost plane makes 2
_MOST_LAYERS = 100  # below any wavelength in nm
_LAYERS = "; if that number counts the optical layers of a section, number all planes through"
_LONG = 12  # planes from which steps of 1 and 2 are recognised as rounded ones


class Ordered(NamedTuple):
    """Planes of one channel by rising number; None for each missing number."""

    files: list[Path | None]
    first: str  # the name of the file that is plane 0


def order_planes(folder: Path, files: Sequence[Path], c: int | None, *, fill_gaps: bool = False) -> Ordered:
    """Files of channel `c` ordered by the plane numbers in their names.

    `c` is a number that the names carry (`ch1`, `C01`, `561nm`), or where channels differ in words an index
    in alphabetical order. A number that is missing in the series is an error that names it, or with
    `fill_gaps` a None in its place. Raises CanvasError for several channels and no choice, tiles that have to
    be stitched, files that are not named alike, and equal numbers.
    """
    named = parse_one_stack(folder, files)
    planes = sorted(_of_channel(folder, named, c), key=lambda file: file.plane)
    for file, other in pairwise(planes):
        if file.plane == other.plane:
            raise CanvasError(
                f"{folder}: {file.path.name} and {other.path.name} carry the same plane number; which one "
                "is deeper?"
            )
    return Ordered(_with_gaps(folder, planes, fill_gaps), planes[0].path.name)


def channels_in(folder: Path, files: Sequence[Path]) -> dict[int, str]:
    """The channels of a folder of planes: what `c` takes, and what the names call it; none for names without.

    Raises CanvasError as `order_planes` does.
    """
    rests = sorted({plane_file.rest for plane_file in parse_one_stack(folder, files)})
    return {c: str(label) for c, (_, label) in _choices(rests).items()} if len(rests) > 1 else {}


def _choices(rests: Sequence[str]) -> dict[int, tuple[str, int | str | None]]:
    """Values of `c` for several channels: the rest of its names, and what tells it apart."""
    labels = _channel_labels(rests)
    if all(isinstance(label, int) for label in labels.values()):
        by_number = sorted(((int(label), rest) for rest, label in labels.items() if label is not None))
        return {number: (rest, number) for number, rest in by_number}
    by_word = sorted(labels.items(), key=lambda item: str(item[1]))
    return dict(enumerate(by_word))


def _of_channel(folder: Path, named: Sequence[Named], c: int | None) -> list[Named]:
    """Planes of one channel: names that are equal but for the plane number."""
    rests = sorted({plane_file.rest for plane_file in named})
    if len(rests) == 1:
        only = _channel_labels(rests)[rests[0]]
        if c is not None and c != only and not (only is None and c == 0):
            raise CanvasError(
                f"{folder}: there is no c={c}, the names have no channel (X_Y_Z_chN.tiff)"
                if only is None
                else f"{folder} holds the channels {[only]}: there is no c={c}"
            )
        return list(named)
    choices = _choices(rests)
    if c is None or c not in choices:
        numbered = all(label == index for index, (_, label) in choices.items())
        described = (
            str(list(choices))
            if numbered
            else ", ".join(f"{index} ({label})" for index, (_, label) in choices.items())
        )
        counts = Counter(plane_file.rest for plane_file in named)
        fewest = min(counts, key=lambda rest: counts[rest])
        odd = next(plane_file.path.name for plane_file in named if plane_file.rest == fewest)
        uneven = 2 * counts[fewest] < max(counts.values())
        raise CanvasError(
            f"{folder} holds the channels {described}: "
            + ("choose one with --c" if c is None else f"there is no c={c}")
            + (f", or move away what is no plane, such as {odd}" if uneven else "")
            + (_LAYERS if c is None and _may_be_layers(rests) else "")
        )
    return [plane_file for plane_file in named if plane_file.rest == choices[c][0]]


def _may_be_layers(rests: Sequence[str]) -> bool:
    """Whether what tells channels apart is a small number without a word, as `01` in section_003_01.tif."""
    labels = _channel_labels(rests)
    numbers = [label for label in labels.values() if isinstance(label, int) and label < _MOST_LAYERS]
    return len(numbers) == len(rests) and all(
        re.search(rf"(?<![a-z\d])0*{label}(?![a-z\d])", rest, re.IGNORECASE) for rest, label in labels.items()
    )


def _channel_labels(rests: Sequence[str]) -> dict[str, int | str | None]:
    """Label of each channel: a number of its name, else the words that differ."""
    if len(rests) == 1:
        match = _CHANNEL.search(rests[0])
        return {rests[0]: None if match is None else int(match[1])}
    parts = [re.findall(r"\d+|\D+", rest) for rest in rests]
    if len({len(row) for row in parts}) == 1:
        for column in zip(*parts, strict=True):
            if len(set(column)) == len(rests):
                numbers = all(part.isdigit() for part in column)
                words = [int(p) if numbers else p.strip(f"_- .{PLANE}") for p in column]
                if len(set(words)) == len(rests):
                    return dict(zip(rests, words, strict=True))
    return {rest: rest.replace(PLANE, "*") for rest in rests}


def usual_step(numbers: Sequence[float]) -> float:
    """Step between sorted numbers of planes: the median, unless it is already that of a lost plane; then the
    smallest."""
    steps = [b - a for a, b in pairwise(numbers)]
    if not steps:
        return 1.0
    smallest, middle = min(steps), median(steps)
    if set(steps) == {1.0, 2.0}:  # a third of each: lost planes are fewer than steps that were rounded
        often = min(steps.count(1.0), steps.count(2.0)) * 3 >= len(steps)
        return 1.5 if often and len(numbers) >= _LONG and _is_rounded(numbers) else 1.0
    return middle if middle < GAP * smallest else smallest


def _is_rounded(numbers: Sequence[float]) -> bool:
    """Whether numbers are those of equal steps, rounded: none is off its line by more than rounding."""
    step = (numbers[-1] - numbers[0]) / (len(numbers) - 1)
    return all(abs(number - numbers[0] - k * step) < 1 for k, number in enumerate(numbers))


def _with_gaps(folder: Path, planes: Sequence[Named], fill_gaps: bool) -> list[Path | None]:
    steps = [other.plane - plane_file.plane for plane_file, other in pairwise(planes)]
    usual = usual_step([plane_file.plane for plane_file in planes])
    files: list[Path | None] = [planes[0].path]
    for (plane_file, other), step in zip(pairwise(planes), steps, strict=True):
        lacking = round(step / usual) - 1 if step > GAP * usual else 0
        if lacking and not fill_gaps:
            raise CanvasError(
                f"{folder}: {lacking} plane{'s are' if lacking > 1 else ' is'} missing between "
                f"{plane_file.path.name} and {other.path.name}; copy them again, or "
                "--missing-chunks empty reads them as 0"
            )
        files += [None] * lacking + [other.path]
    return files
