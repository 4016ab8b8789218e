"""Everything that is wrong with a data set, found in one go."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tifffile

from canvas_fm.data.dataset.dataset_addresses import LABEL, MARKERS, SPLITS, Brain, brains_in
from canvas_fm.data.points.points import Points, inside, repeated_rows
from canvas_fm.data.volume.tiff.pages import count_planes, use_tiff
from canvas_fm.data.volume.tiff.plane_series import GAP, usual_step
from canvas_fm.errors import CanvasError, counted
from canvas_fm.progress import bar

_PLANE = re.compile(r"(\d+)_(\d+)_(\d+)_ch(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class DatasetCheck:
    """Contents of a data set by brain, and its faults."""

    path: Path
    brains: dict[str, dict[str, Any]]
    faults: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"path": str(self.path), "brains": self.brains, "faults": list(self.faults)}


def check_dataset(path: str | Path, *, progress: bool | None = None) -> DatasetCheck:
    """Look at every plane's header and every annotation of a data set in a folder or a `.tar`.

    Faults: unknown markers; planes that are missing, doubled, damaged, or of another size or type than most;
    gaps in z; brains without annotations; files that cannot be read; annotations outside the volume or twice.
    Raises CanvasError where there is no data set at all.
    """
    root, faults, held = Path(path), list[str](), dict[str, dict[str, Any]]()
    brains = brains_in(root)
    with bar(f"check {root.name}", sum(len(b.planes) for b in brains), unit="planes", show=progress) as tick:
        for brain in brains:
            checked = _Checked(brain)
            for plane in brain.planes:
                checked.look_at(plane)
                tick()
            held[brain.name] = checked.conclude()
            faults += [f"{brain.name}: {fault}" for fault in checked.faults]
    return DatasetCheck(root, held, tuple(faults))


def _depth(numbers: Sequence[int]) -> int:
    """Planes from the first to the last number, those that are missing counted."""
    return round((numbers[-1] - numbers[0]) / usual_step(numbers)) + 1


def _header(tiff: tifffile.TiffFile) -> tuple[tuple[int, ...], str]:
    """Shape and type of the only plane, whose voxels have to be there."""
    if (held := count_planes(tiff)) != 1:
        raise CanvasError(f"{tiff.filename} holds {counted(held, 'plane')}; each file is one")
    page: Any = tiff.pages.first
    ends = (offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    if max(ends, default=0) > tiff.filehandle.size:
        raise ValueError("it ends before its voxels do")
    return page.shape, str(page.dtype)


class _Checked:
    """One brain; `look_at` each plane, then `conclude`."""

    def __init__(self, brain: Brain) -> None:
        self.brain, self.faults = brain, list[str]()
        self._headers: dict[Path, tuple[tuple[int, ...], str]] = {}
        self._numbers: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._tiles: set[tuple[str, str]] = set()

    def look_at(self, plane: Path) -> None:
        """Read a plane's name and header."""
        match = _PLANE.fullmatch(plane.stem)
        if match is None:
            self.faults.append(f"{plane.name} is not named X_Y_Z_chN.tiff")
            return
        self._tiles.add((match[1], match[2]))
        self._numbers[int(match[4])][int(match[3])].append(plane.name)
        try:
            self._headers[plane] = use_tiff(plane, _header, alone=True)
        except CanvasError as problem:
            self.faults.append(str(problem))

    def conclude(self) -> dict[str, Any]:
        """Compare the planes with each other and the annotations with the volume."""
        if self.brain.marker is None:
            self.faults.append(f"the marker of its name is unknown; known are {', '.join(MARKERS)}")
        if not self.brain.planes:
            self.faults.append("there are no planes in image/")
        if len(self._tiles) > 1:
            self.faults.append(f"{len(self._tiles)} tiles (X_Y) lie in one folder; stitch them first")
        usual = Counter(self._headers.values()).most_common(1)
        for plane, header in self._headers.items():
            if header != usual[0][0]:
                self.faults.append(
                    f"{plane.name} has shape {header[0]}, {header[1]}; most have {usual[0][0][0]}, "
                    f"{usual[0][0][1]}"
                )
        for channel, planes in sorted(self._numbers.items()):
            self._series(channel, planes)
        depth = max((_depth(sorted(planes)) for planes in self._numbers.values()), default=0)
        shape = (depth, *usual[0][0][0]) if usual else None
        regions = self._regions(shape)
        return {
            "marker": self.brain.marker,
            "shape_zyx": None if shape is None else list(shape),
            "dtype": usual[0][0][1] if usual else None,
            "channels": sorted(self._numbers),
            "regions": regions,
        }

    def _series(self, channel: int, planes: dict[int, list[str]]) -> None:
        for names in planes.values():
            if len(names) > 1:
                self.faults.append(f"channel {channel}: {' and '.join(sorted(names))} are the same plane")
        numbers = sorted(planes)
        steps = [b - a for a, b in pairwise(numbers)]
        usual = usual_step(numbers)
        for (a, b), step in zip(pairwise(numbers), steps, strict=True):
            if step > GAP * usual:
                lacking = round(step / usual) - 1
                self.faults.append(
                    f"channel {channel}: {lacking} plane{'s are' if lacking > 1 else ' is'} missing between "
                    f"{planes[a][0]} and {planes[b][0]}"
                )
        most = max(len(other) for other in self._numbers.values())
        if len(numbers) < most:
            self.faults.append(f"channel {channel} has {counted(len(numbers), 'plane')}, another one {most}")

    def _regions(self, shape: tuple[int, ...] | None) -> dict[str, int]:
        held: dict[str, int] = {}
        if not self.brain.regions:
            self.faults.append(f"there are no annotations (…_regionK_gt.csv) in {LABEL}/TRAIN/")
        for region in self.brain.regions:
            name = f"{region.split}/region_{region.number}"
            if region.split not in SPLITS:
                self.faults.append(
                    f"{region.path.name} lies in {LABEL}/{region.split}/; expected TRAIN or TEST"
                )
            if name in held:
                self.faults.append(f"{name} is there twice, the second time as {region.path.name}")
            try:
                points = Points.read(region.path)
            except CanvasError as problem:
                self.faults.append(f"{region.path.name}: {problem}")
                continue
            held[name] = len(points)
            if repeated := repeated_rows(points.zyx):
                self.faults.append(
                    f"{region.path.name}: {repeated} of {counted(len(points), 'annotation')} repeat the "
                    "position of another"
                )
            if shape is None or not len(points):
                continue
            outside = int((~inside(points.zyx, shape)).sum())
            if outside:
                self.faults.append(
                    f"{region.path.name}: {outside} of {len(points)} annotations lie outside the volume "
                    f"{shape}"
                )
        return held
