"""Zarr v2 metadata beside v3 metadata in one folder: the same array described twice, or two arrays."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from canvas_fm.errors import CanvasError

_log = logging.getLogger(__name__)


def check_arrays(where: str, v3: dict[str, Any], v2: dict[str, Any]) -> None:
    """Raise CanvasError where an array's two metadata differ in shape or dtype; warn of chunks of each.

    v2 metadata that were migrated in place name the same chunks, and pass without a word.
    """
    descriptions = [(_shape(v3), str(v3.get("data_type"))), (_shape(v2), _dtype(v2))]
    if descriptions[0] != descriptions[1]:
        both = " and ".join(f"{dtype} of shape {shape}" for shape, dtype in descriptions)
        raise CanvasError(
            f"{where} is described twice, by zarr.json and by .zarray, as {both}: these are two arrays in "
            "one folder; move the metadata and chunks of one to another folder"
        )
    encoding = v3.get("chunk_key_encoding")
    if not isinstance(encoding, dict) or encoding.get("name") != "v2":
        _log.warning(
            "%s is described twice, by zarr.json and by .zarray, each with chunks of its own; "
            "the voxels of zarr.json are read: remove what is old",
            where,
        )


def warn_of_scales(where: str, v3: dict[str, Any], v2: dict[str, Any]) -> None:
    """Warn where a group's two attributes give its levels other paths or scales."""
    levels = [_levels(attributes) for attributes in (v3, v2)]
    if levels[0] and levels[1] and levels[0] != levels[1]:
        _log.warning(
            "%s has levels or scales in zarr.json other than in .zattrs; those of zarr.json are read: "
            "remove what is old, or give --voxel-um",
            where,
        )


def _shape(metadata: dict[str, Any]) -> str:
    shape = metadata.get("shape")
    return " × ".join(map(str, shape)) if isinstance(shape, list) else str(shape)


def _dtype(metadata: dict[str, Any]) -> str:
    try:
        return np.dtype(metadata.get("dtype")).name
    except TypeError:
        return str(metadata.get("dtype"))


def _levels(attributes: dict[str, Any]) -> list[Any]:
    """Path and transformations of each level, of the image and of all its levels."""
    ome = attributes.get("ome", attributes)
    scales = ome.get("multiscales") if isinstance(ome, dict) else None
    if not isinstance(scales, list) or not scales or not isinstance(scales[0], dict):
        return []
    datasets, outer = scales[0].get("datasets"), scales[0].get("coordinateTransformations")
    if not isinstance(datasets, list) or not all(isinstance(level, dict) for level in datasets):
        return []
    return [(level.get("path"), level.get("coordinateTransformations")) for level in datasets] + [outer]
