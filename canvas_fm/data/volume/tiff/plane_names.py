"""Plane and channel numbers in the file names of a folder of TIFF planes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from canvas_fm.errors import CanvasError

# X_Y_Z_chN.tiff, the CANVAS layout: the third number is the plane, N the channel.
_CANVAS = re.compile(r"(\d+)_(\d+)_(\d+)_ch(\d+)", re.IGNORECASE)
# Z0001, z-12.5, z+2,5, plane_7, slice 3: a number that says that it is the plane, signed and decimal too.
_MARKED = re.compile(
    r"(?:(?<![a-z])z|planes?|slices?|sections?)[ _]?([-+]?\d+(?:[.,]\d+)?)(?![\d.]*\d)", re.IGNORECASE
)
_LAST = re.compile(r"(?:^|(?<=[_ ]))([-+]?\d+(?:[.,]\d+)?)(?:[uµμ]m)?$", re.IGNORECASE)
_DECIMAL = re.compile(r"(?<![\d.])([-+]?\d+\.\d+)(?![\d.]*\d)")
# What makes a folder more than one stack, but is no channel: tiles, positions, times.
_SEVERAL = {
    "tiles ([YY x XX])": re.compile(r"\[(\d+ ?x ?\d+)\]"),
    "tiles": re.compile(
        r"(?<![a-z])tile[ _]?((?:x?\d+)(?:[ _]?y\d+)?)|(?<![a-z])(x\d+[ _]?y\d+)|^(\d{6}_-?\d{6})_\0",
        re.IGNORECASE,
    ),
    "positions": re.compile(
        r"(?<![a-z])pos(?:ition)?[ _]?(\d+)|(?<![a-z])(?:series|xy\d*_|s)(\d+)(?=_)", re.IGNORECASE
    ),
    "views": re.compile(
        r"(?<![a-z])(?:view|angle|ang)[-_ ]?(\d+)|(?<![a-z])(?:left|right)(\d+)", re.IGNORECASE
    ),
    "time points": re.compile(
        r"(?<![a-z])(?:time(?:point)?|tl|tm|tp|t)[-_ ]?(\d+)|^img_(\d{9})_", re.IGNORECASE
    ),
}
_CHANNEL = re.compile(r"(?<![a-z])ch?(?:annel)?[ _]?(\d+)", re.IGNORECASE)
_PLANE = "\0"
_CELLFINDER_DIGITS = 4  # ch010003 is channel 01, plane 0003
GAP = 1.6  # of the smallest step: a rounded step of 2 or more varies by less, a lost plane makes 2
_MOST_LAYERS = 100  # below any wavelength in nm
_LAYERS = "; if that number counts the optical layers of a section, number all planes through"
_MOST_ALONE = 4  # channels of one plane each; more are planes that carry a time, too
_LONG = 12  # planes from which steps of 1 and 2 are recognised as rounded ones


class Named(NamedTuple):
    """A file, its plane number, and the rest of its name, which planes of one channel share."""

    path: Path
    plane: float
    rest: str


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
    named = _parse_one_stack(folder, files)
    planes = sorted(_of_channel(folder, named, c), key=lambda file: file.plane)
    for file, other in pairwise(planes):
        if file.plane == other.plane:
            raise CanvasError(
                f"{folder}: {file.path.name} and {other.path.name} carry the same plane number; which one "
                "is deeper?"
            )
    return Ordered(_with_gaps(folder, planes, fill_gaps), planes[0].path.name)


def _parse_one_stack(folder: Path, files: Sequence[Path]) -> list[Named]:
    """Parsed names; CanvasError where they are of several tiles, positions or times."""
    named = _parse(folder, files)
    for what, pattern in _SEVERAL.items():
        values = {_first_group(pattern, plane_file.rest) for plane_file in named}
        if len(values) > 1:
            raise CanvasError(
                f"{folder} holds {len(values)} {what}: {', '.join(sorted(values)[:8])}; a volume is one: "
                "move each to a folder of its own"
                + ("" if what == "time points" else ", or stitch them first")
            )
    return named


def _first_group(pattern: re.Pattern[str], rest: str) -> str:
    match = pattern.search(rest)
    return "" if match is None else next(group for group in match.groups() if group is not None)


def _parse(folder: Path, files: Sequence[Path]) -> list[Named]:
    canvas = [_CANVAS.fullmatch(path.stem) for path in files]
    if all(canvas):
        tiles = {(match[1], match[2]) for match in canvas if match}
        if len(tiles) > 1:
            raise CanvasError(
                f"{folder} holds {len(tiles)} tiles (X_Y before the plane's number); stitch them first"
            )
        return [
            Named(path, int(match[3]), f"ch{int(match[4])}")
            for path, match in zip(files, canvas, strict=True)
            if match
        ]
    stems = [_stem(path) for path in files]
    for pattern in (_MARKED, _LAST, _DECIMAL):
        matches = [_last_match(pattern, stem) for stem in stems]
        texts = [match[1] for match in matches if match]
        if all(matches) and len(set(texts)) > 1 and (pattern is not _DECIMAL or _are_decimal(texts)):
            rows = [
                Named(path, _number(match[1], stems, pattern), _without(stem, match))
                for path, stem, match in zip(files, stems, matches, strict=True)
                if match
            ]
            if not _alone(rows, strict=pattern is not _MARKED):
                return rows
    return _by_slots(folder, files, stems)


def _stem(path: Path) -> str:
    """File name without .tif and .ome."""
    return path.stem.removesuffix(".ome") if path.stem.lower().endswith(".ome") else path.stem


def _last_match(pattern: re.Pattern[str], stem: str) -> re.Match[str] | None:
    return next(reversed(list(pattern.finditer(stem))), None)


def _without(stem: str, match: re.Match[str]) -> str:
    return stem[: match.start(1)] + _PLANE + stem[match.end(1) :]


def _number(text: str, stems: Sequence[str], pattern: re.Pattern[str]) -> float:
    """Parse a number; a minus is a sign, unless all numbers have one and equal width: then a separator."""
    if text.startswith("-"):
        texts = [match[1] for match in (_last_match(pattern, stem) for stem in stems) if match]
        padded = len({len(text) for text in texts}) == 1 and any(text.startswith("-0") for text in texts)
        if padded and all(text.startswith("-") for text in texts):
            text = text[1:]
    return float(text.replace(",", "."))


def _are_decimal(texts: Sequence[str]) -> bool:
    """Whether `12.50` are decimal numbers, and not a channel and a plane with a dot between them."""
    wholes, parts = zip(*(text.split(".") for text in texts), strict=True)
    return (
        len({len(part) for part in parts}) == 1
        and len(set(wholes)) >= len(set(parts))
        and not all(text.startswith("-") for text in texts)
    )


def _alone(rows: Sequence[Named], *, strict: bool) -> bool:
    """Whether the number is no plane number: the rest of each name differs, or with `strict` takes more
    values than the number, as where a channel stands last."""
    rests = len({row.rest for row in rows})
    return len(rows) > 1 and (rests == len(rows) or (strict and rests > len({row.plane for row in rows})))


def _by_slots(folder: Path, files: Sequence[Path], stems: Sequence[str]) -> list[Named]:
    """Choose the slot with the most distinct values (the last of equal ones) as plane number."""
    parts = [re.findall(r"\d+|\D+", stem) for stem in stems]
    slots = [[i for i, part in enumerate(row) if part.isdigit()] for row in parts]
    if len(files) == 1:  # a lone plane needs no number
        return [Named(files[0], 0, stems[0] + _PLANE)]
    if not any(slots):
        raise CanvasError(
            f"{folder}: names such as {files[0].name} and {files[-1].name} have no number, and planes are "
            "ordered by it; number them from the top, such as z000.tif"
        )
    if len({len(slot) for slot in slots}) > 1:
        shortest, longest = (end(range(len(files)), key=lambda i: len(slots[i])) for end in (min, max))
        raise CanvasError(
            f"{folder}: {files[longest].name} and {files[shortest].name} are not named alike; move away "
            "what is no plane"
        )
    values = [
        len({row[slot[k]] for row, slot in zip(parts, slots, strict=True)}) for k in range(len(slots[0]))
    ]
    chosen = max(range(len(values)), key=lambda k: (values[k], k))
    rows = []
    for path, row, slot in zip(files, parts, slots, strict=True):
        at, digits = slot[chosen], row[slot[chosen]]
        channel, plane = _run_together("".join(row[:at]), digits)
        rows.append(Named(path, int(plane), "".join([*row[:at], channel, _PLANE, *row[at + 1 :]])))
    words = {tuple(part for part in row if not part.isdigit()) for row in parts}
    if len(rows) > _MOST_ALONE and len({row.rest for row in rows}) == len(rows) and len(words) == 1:
        return _without_times(folder, rows, stems)
    return rows


def _without_times(folder: Path, rows: Sequence[Named], stems: Sequence[str]) -> list[Named]:
    """Rows by the number that counts the planes, where each file carries the time it was written too.

    That is the one whose steps are equal. Raises CanvasError where none is, and where two are in different
    orders: every file would be a channel of its own.
    """
    numbers = np.array([[int(digits) for digits in re.findall(r"\d+", stem)] for stem in stems], object)
    counting = [k for k, values in enumerate(numbers.T) if _is_even(sorted(values))]
    orders = {tuple(np.argsort(numbers[:, k]).tolist()) for k in counting}
    if len(orders) != 1:
        first, second = rows[0].path.name, rows[1].path.name
        raise CanvasError(
            f"{folder}: names such as {first} and {second} differ in more than one number, and it is not "
            "clear which counts the planes; number them from the top, such as z000.tif"
        )
    varying = [len(set(values)) > 1 for values in numbers.T]
    rest = "".join(
        (_PLANE if k == counting[-1] else "*") if part.isdigit() and varying[k] else part
        for part, k in _slots(stems[0])
    )
    return [
        row._replace(plane=number, rest=rest)
        for row, number in zip(rows, numbers[:, counting[-1]], strict=True)
    ]


def _slots(stem: str) -> list[tuple[str, int]]:
    """The parts of a name, each with how many numbers stand before it."""
    parts = re.findall(r"\d+|\D+", stem)
    return [(part, sum(before.isdigit() for before in parts[:at])) for at, part in enumerate(parts)]


def _is_even(values: Sequence[int]) -> bool:
    """Whether sorted numbers count something: multiples of one step, with few gaps."""
    steps = [b - a for a, b in pairwise(values)]
    smallest = min(steps)
    return (
        smallest > 0
        and all(step % smallest == 0 for step in steps)
        and sum(steps) < 2 * smallest * len(values)
    )


def _run_together(before: str, digits: str) -> tuple[str, str]:
    """Channel and plane of cellfinder's `NAME_ch010003`, where they are one number."""
    if re.search(r"(?<![a-z])ch$", before, re.IGNORECASE) and len(digits) > _CELLFINDER_DIGITS:
        return digits[:-_CELLFINDER_DIGITS], digits[-_CELLFINDER_DIGITS:]
    return "", digits


def channels_in(folder: Path, files: Sequence[Path]) -> dict[int, str]:
    """The channels of a folder of planes: what `c` takes, and what the names call it; none for names without.

    Raises CanvasError as `order_planes` does.
    """
    rests = sorted({plane_file.rest for plane_file in _parse_one_stack(folder, files)})
    return {c: str(label) for c, (_, label) in _choices(rests).items()} if len(rests) > 1 else {}


def _choices(rests: Sequence[str]) -> dict[int, tuple[str, int | str | None]]:
    """What `c` takes for each of several channels: the rest of its names, and what tells it apart."""
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
                words = [int(p) if numbers else p.strip(f"_- .{_PLANE}") for p in column]
                if len(set(words)) == len(rests):
                    return dict(zip(rests, words, strict=True))
    return {rest: rest.replace(_PLANE, "*") for rest in rests}


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
