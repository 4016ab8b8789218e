"""Brains and regions of a data set by name: `DIR:cFos/region_2`, `brains.tar:IBA1_brain_11`.

The layout is that of the CANVAS paper (section 6.4): `MARKER_BRAINID/image/X_Y_Z_chN.tiff` and
`MARKER_BRAINID/label/TRAIN/…_regionK_gt.csv`, in a folder or in a `.tar`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from canvas_fm.data.store.tar_index import PACKED, TAR, in_tar
from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import SAMPLE, sample_file

MARKERS = ("NeuN", "cFos", "TH", "PV", "GFAP", "IBA1")
SPLITS = ("TRAIN", "TEST")
IMAGE, LABEL = "image", "label"
TIFF = (".tif", ".tiff")
_REGION = re.compile(r"region_?(\d+)_gt\.csv$", re.IGNORECASE)
_NAME = re.compile(r"(?P<brain>[^/]+)(?:/(?:(?P<split>TRAIN|TEST)/)?region_?(?P<region>\d+))?", re.IGNORECASE)


class Region(NamedTuple):
    """An annotated region: its split, number and file."""

    split: str
    number: int
    path: Path


@dataclass(frozen=True)
class Brain:
    """A folder `MARKER_BRAINID`; the marker is None where the name has none that is known."""

    name: str
    marker: str | None
    image: Path
    planes: tuple[Path, ...]
    regions: tuple[Region, ...]


def volume_path(path: str | Path) -> Path:
    """The path of a volume: itself, a shipped sample's, or that of a brain of a data set."""
    named = _named(path)
    return sample_file(path, "raw.zarr") if named is None else named[0].image


def points_path(path: str | Path) -> Path:
    """The path of points: itself, a shipped sample's, or that of a region of a data set."""
    named = _named(path)
    if named is None:
        return sample_file(path, "centroids.csv")
    brain, match = named
    candidates = [
        region
        for region in brain.regions
        if match["region"] in (None, str(region.number), f"{region.number:02d}")
        and (match["split"] or region.split).upper() == region.split.upper()
    ]
    if len(candidates) == 1:
        return candidates[0].path
    known = ", ".join(f"{region.split}/region_{region.number}" for region in brain.regions) or "none"
    problem = "names no region" if not candidates else "may be any of several regions"
    raise CanvasError(f"{path} {problem} of {brain.name}; it has {known}")


def marker_of_folder(folder: str) -> str | None:
    """The marker that a folder `MARKER_BRAINID` begins with."""
    first = folder.partition("_")[0].lower()
    return next((marker for marker in MARKERS if marker.lower() == first), None)


def brains_in(root: Path) -> list[Brain]:
    """The brains of a data set, by name, also where they lie in a lone folder of it, as `tar cf` packs one.

    Raises CanvasError where there is none.
    """
    by_folder: dict[str, tuple[list[Path], list[Region]]] = {}
    files = _files(root)
    for name in files:
        if len(name.parts) < 3 or name.name.startswith("."):
            continue
        planes, regions = by_folder.setdefault(name.parts[0], ([], []))
        match = _REGION.search(name.name)
        if name.parts[1] == IMAGE and len(name.parts) == 3 and name.suffix.lower() in TIFF:
            planes.append(root / name)
        elif name.parts[1] == LABEL and match and len(name.parts) > 3:
            regions.append(Region(name.parts[2], int(match[1]), root / name))
    brains = [
        Brain(
            name, marker_of_folder(name), root / name / IMAGE, tuple(sorted(planes)), tuple(sorted(regions))
        )
        for name, (planes, regions) in sorted(by_folder.items())
        if planes or regions
    ]
    if not brains:
        below = sorted(
            {name.parts[0] for name in files if len(name.parts) > 3 and name.parts[2] in (IMAGE, LABEL)}
        )
        if len(below) == 1:
            return brains_in(root / below[0])
        if below:
            raise CanvasError(f"{root} holds data sets in {', '.join(below[:8])}; give one of these folders")
        raise CanvasError(
            f"{root} holds no data set; expected MARKER_BRAINID/{IMAGE}/X_Y_Z_chN.tiff and "
            f"MARKER_BRAINID/{LABEL}/TRAIN/…_regionK_gt.csv, in a folder or a {TAR}"
        )
    return brains


def _files(root: Path) -> list[PurePosixPath]:
    archive = in_tar(root)
    if archive is not None:
        return list(archive[0].below(archive[1]))
    if not root.is_dir():
        packed = "; unpack it first" if root.suffix.lower() in (".zip", ".7z", ".rar") else ""
        raise CanvasError(f"{root} is no folder and no {TAR} archive{packed}")
    return [PurePosixPath(path.relative_to(root)) for path in root.glob("*/*/**/*") if path.is_file()]


def _named(path: str | Path) -> tuple[Brain, re.Match[str]] | None:
    """The brain that DIR:NAME stands for; None for what is no such name."""
    text = str(path)
    folder, colon, name = text.rpartition(":")
    root = Path(folder)
    if not colon or not folder or text.startswith(SAMPLE) or Path(text).exists():
        return None
    if not (root.is_dir() or (root.is_file() and root.name.lower().endswith((TAR, *PACKED)))):
        return None
    match, brains = _NAME.fullmatch(name), brains_in(root)
    chosen = [
        brain
        for brain in brains
        if match and match["brain"].lower() in (brain.name.lower(), (brain.marker or "").lower())
    ]
    if match is None or len(chosen) != 1:
        listing = ", ".join(brain.name for brain in brains)
        raise CanvasError(
            f"{text}: {'several brains are' if chosen else 'no brain is'} called {name.split('/')[0]!r} in "
            f"{root}; it holds {listing}: give DIR:BRAIN or DIR:BRAIN/region_2"
        )
    return chosen[0], match
