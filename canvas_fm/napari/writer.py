"""Saving a points layer from napari: cellfinder's and brainmapper's XML, or a table with all columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from canvas_fm.data.points.formats.read_write import format_of
from canvas_fm.data.points.points import Points
from canvas_fm.napari.layers import METADATA


def write_cells(path: str, data: np.ndarray, attributes: dict[str, Any]) -> list[str]:
    """Write the points of a layer in voxels, in the format of the suffix; returns the path.

    In XML `label` 1 is type 2 (a cell) and 0 is type 1; of a layer without labels all are cells.
    """
    features = attributes.get("features")
    columns = {} if features is None else {str(name): np.asarray(features[name]) for name in features}
    columns = {
        name: values if values.dtype.kind in "iuf" else values.astype(np.str_)
        for name, values in columns.items()
    }
    meta = dict(attributes.get("metadata", {}).get(METADATA, {}).get("meta", {}))
    meta.pop(
        "inputs_sha256", None
    )  # of rows that may have been edited since: `detect` would take them as its own
    Points(np.asarray(data, np.float64), columns, meta).write(path, format_of(path))
    return [path]
