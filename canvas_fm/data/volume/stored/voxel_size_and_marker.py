"""Voxel size and marker of a volume: what its metadata state, against what the caller gives."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from canvas_fm.data.dataset.dataset_addresses import IMAGE, marker_of_folder
from canvas_fm.data.store.checked_store import MANIFEST, CheckedStore
from canvas_fm.data.store.remote.remote_store import Remote
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError

_log = logging.getLogger(__name__)
_SMALLEST_UM, _LARGEST_UM = 0.01, 1e3  # light-sheet voxels have .1 to 50; in nm or mm they lie beyond


def refuse_single_level(path: Path, store: CheckedStore) -> None:
    """Refuse to open a single level of a store that we wrote: its files would go unchecked."""
    if isinstance(store.files, Remote):  # what lies beside it was not named
        return
    beside = path.resolve().parent
    if store.listed is None and (beside / MANIFEST).exists() and path.is_dir():
        raise CanvasError(f"{path} is one level of {beside}; give {beside}")


def checked_voxel_um(path: Path, stated: ZyxUm | None, why_not: str, voxel_um: ZyxUm | None) -> ZyxUm:
    """The given voxel size, else the stated one; CanvasError where there is neither."""
    if voxel_um is None:
        if stated is None:
            raise CanvasError(f"{path} has no voxel size; give --voxel-um z y x once ({why_not})")
        if not _is_likely(stated):
            raise CanvasError(
                f"{path} states a voxel of {_sizes(stated)} µm, which no light-sheet microscope has: its "
                "unit is wrong; give --voxel-um z y x"
            )
        return stated
    if not _is_likely(voxel_um):
        _log.warning(
            "%s: --voxel-um is %s µm, which no light-sheet microscope has; is it in nm or mm?",
            path,
            _sizes(voxel_um),
        )
    if stated is not None and any(abs(a - b) > 0.05 * b for a, b in zip(voxel_um, stated, strict=True)):
        _log.warning("%s states a voxel of %s µm (z, y, x); the given %s is used", path, stated, voxel_um)
    return voxel_um


def _is_likely(voxel_um: ZyxUm) -> bool:
    return all(_SMALLEST_UM <= size <= _LARGEST_UM for size in voxel_um)


def _sizes(voxel_um: ZyxUm) -> str:
    return ", ".join(f"{size:g}" for size in voxel_um)


def marker_of(path: Path, stated: Any, marker: str | None) -> str | None:
    """Marker of a volume: the store's attribute, else `meta.json` next to it, else a folder
    `MARKER_BRAINID` of planes, else the argument."""
    if not isinstance(stated, str):
        stated = _meta_beside(path).get("marker")
    if not isinstance(stated, str) and path.name == IMAGE:
        stated = marker_of_folder(path.parent.name)
    if not isinstance(stated, str):
        return marker
    if marker is not None and marker != stated:
        _log.warning("%s is marked %s; the given marker %s is not used", path, stated, marker)
    return stated


def crop_of(path: Path) -> str | None:
    """Name of the volume that this one was cut from: the last part of `cube` in `meta.json` next to it."""
    cube = _meta_beside(path).get("cube")
    return Path(cube).name or None if isinstance(cube, str) else None


def _meta_beside(path: Path) -> dict[str, Any]:
    try:
        beside = json.loads((path.resolve().parent / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return beside if isinstance(beside, dict) else {}
