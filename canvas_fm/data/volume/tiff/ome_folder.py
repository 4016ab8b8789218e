"""A folder of TIFF files against the OME metadata in them: stacks in parts, order along z, lost files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import tifffile

from canvas_fm.data.volume.tiff.metadata import OmePixels, split_pixels
from canvas_fm.data.volume.tiff.pages import use_tiff
from canvas_fm.errors import CanvasError


def stack_of(folder: Path, files: Sequence[Path]) -> Path | None:
    """The file to open in place of a folder: its only one, or one whose OME metadata list all, with several
    planes in each; None where each file is a plane."""
    if len(files) == 1:
        return None if _is_one_plane(files[0]) else files[0]
    first = min(files, default=None)
    if first is None or not first.stem.lower().endswith(".ome"):
        return None
    split = _split_of(first)
    if split is None or not {file.name for file in files} <= _listed(split):
        return None
    return first if len(_listed(split)) < split.files.size else None


def _split_of(file: Path) -> OmePixels | None:
    """Files of the planes of an OME-TIFF; None for no OME-TIFF, and where its metadata cannot be used."""
    try:
        return use_tiff(file, partial(split_pixels, file))
    except CanvasError:
        return None


def _listed(split: OmePixels) -> set[str]:
    return {file.name for file in split.files.flat if file is not None}


def _is_one_plane(file: Path) -> bool:
    """Whether a file holds one plane; also where it cannot be read, or is a plane of a series in files."""

    def about(tiff: tifffile.TiffFile) -> bool:
        return len(tiff.pages) == 1 and math.prod(tiff.series[0].shape[:-2]) == 1

    try:
        return use_tiff(file, about, alone=True)
    except CanvasError:
        return True


def check_order(folder: Path, readable: Sequence[Path], files: Sequence[Path], *, fill_gaps: bool) -> None:
    """Compare names with the OME metadata of the first plane: another order along z, and files that are
    lost.

    Names that the metadata do not list, as those of copies, are left as they are.
    """
    split = _split_of(readable[0])
    if split is None or split.shape[split.axes.index("Z")] < len(readable):
        return
    listed = _listed(split)
    if not {file.name for file in readable} <= listed:
        return
    lost = sorted(listed - {file.name for file in files})
    if lost and not fill_gaps:
        raise CanvasError(
            f"{folder}: {lost[0]}"
            + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
            + ", which the OME metadata name, is missing; copy it again, or give --missing-chunks empty"
        )
    place = split.axes.index("Z")
    z_of = {file.name: index[place] for index, file in np.ndenumerate(split.files) if file is not None}
    planes = [z_of[file.name] for file in readable]
    odd = next((at for at, (a, b) in enumerate(pairwise(planes)) if a >= b), None)
    if odd is not None:
        raise CanvasError(
            f"{folder}: by the OME metadata {readable[odd].name} is plane {planes[odd]} and "
            f"{readable[odd + 1].name} plane {planes[odd + 1]}, by their names it is the other way round; "
            f"give {readable[0].name} to go by the metadata, or save the planes without them"
        )
