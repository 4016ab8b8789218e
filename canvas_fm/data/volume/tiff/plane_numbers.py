"""Plane numbers in the file names of a folder of TIFF planes: which number of a name is the plane's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
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
_HEXADECIMAL = re.compile(
    r"(?:^|(?<=[_ .-])|(?<=0x)|(?<![a-z])(?:z|planes?|slices?|sections?))([\da-f]{2,})(?![\da-z])",
    re.IGNORECASE,
)
_DECIMAL = re.compile(r"(?<![\d.])([-+]?\d+\.\d+)(?![\d.]*\d)")
# What makes a folder more than one stack, but is no channel: tiles, positions, times.
_SEVERAL = {
    "tiles ([YY x XX])": re.compile(r"\[(\d+ ?x ?\d+)\]"),
    "tiles": re.compile(
        r"(?<![a-z])tile[ _]?((?:x?\d+)(?:[ _]?y\d+)?)|(?<![a-z])(x\d+[ _]?y\d+)|^(\d{6}_-?\d{6})_\0",
        re.IGNORECASE,
    ),
    "positions": re.compile(
        r"(?<![a-z])pos(?:ition)?[ _]?(\d+)|(?<![a-z])(?:series|xy\d*_|s)(\d+)(?=_)"
        r"|(?<![a-z])xy(\d+)(?=_?z\0)"  # Keyence, Nikon
        r"|(?<=\d)f(\d+)(?=[pl]\0?\d*)",  # fields of Opera (r01c01f01p01) and Yokogawa (T0001F001L01)
        re.IGNORECASE,
    ),
    "views": re.compile(
        r"(?<![a-z])(?:view|angle|ang)[-_ ]?(\d+)|(?<![a-z])(?:left|right)(\d+)", re.IGNORECASE
    ),
    "time points": re.compile(
        r"(?<![a-z])(?:time(?:point)?|tl|tm|tp|t)[-_ ]?(\d+)|^img_(\d{9})_", re.IGNORECASE
    ),
}
PLANE = "\0"  # in place of the plane's number, in the rest of a name
_CELLFINDER_DIGITS = 4  # ch010003 is channel 01, plane 0003
_FEWEST_HEXADECIMAL = 10  # planes from which letters among digits are those of a number
_MOST_ALONE = 4  # channels of one plane each; more are planes that carry a time, too


class Named(NamedTuple):
    """A file, its plane number, and the rest of its name, which planes of one channel share."""

    path: Path
    plane: float
    rest: str


def parse_one_stack(folder: Path, files: Sequence[Path]) -> list[Named]:
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
    if hexadecimal := _by_hexadecimal(files, stems):
        return hexadecimal
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


def _by_hexadecimal(files: Sequence[Path], stems: Sequence[str]) -> list[Named]:
    """Rows by numbers in base 16, where those of each channel count up with few gaps, some with letters and
    some without, and there are more than ten; none for all else, such as 01a, 01b, 02a."""
    by_name = [list(_HEXADECIMAL.finditer(stem)) for stem in stems]
    for place in range(1, 1 + min(map(len, by_name), default=0)):
        numbers: dict[str, list[str]] = {}
        rows = []
        for path, stem, matches in zip(files, stems, by_name, strict=True):
            match = matches[-place]
            rows.append(Named(path, int(match[1], 16), _without(stem, match)))
            numbers.setdefault(rows[-1].rest, []).append(match[1])
        if all(map(_counts_in_hexadecimal, numbers.values())):
            return rows
    return []


def _counts_in_hexadecimal(numbers: Sequence[str]) -> bool:
    return (
        len(numbers) > _FEWEST_HEXADECIMAL
        and len({len(number) for number in numbers}) == 1
        and 0 < sum(number.isdecimal() for number in numbers) < len(numbers)
        and _is_even(sorted(int(number, 16) for number in numbers))
    )


def _stem(path: Path) -> str:
    """File name without .tif and .ome; accents as one letter each, which macOS writes as two; one blank
    before a number that blanks pad."""
    stem = re.sub(r" +(?=\d)", " ", unicodedata.normalize("NFC", path.stem))
    return stem.removesuffix(".ome") if stem.lower().endswith(".ome") else stem


def _last_match(pattern: re.Pattern[str], stem: str) -> re.Match[str] | None:
    return next(reversed(list(pattern.finditer(stem))), None)


def _without(stem: str, match: re.Match[str]) -> str:
    return stem[: match.start(1)] + PLANE + stem[match.end(1) :]


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
        return [Named(files[0], 0, stems[0] + PLANE)]
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
        rows.append(Named(path, int(plane), "".join([*row[:at], channel, PLANE, *row[at + 1 :]])))
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
        (PLANE if k == counting[-1] else "*") if part.isdigit() and varying[k] else part
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
