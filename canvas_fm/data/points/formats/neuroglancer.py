"""Points as Neuroglancer JSON: a local point-annotation layer, whole numbers at voxel corners."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.formats.json_file import load_json
from canvas_fm.data.points.tables import PointTable
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_atomic

_log = logging.getLogger(__name__)
# From a voxel's centre to its corner, in decimals: binary fractions would not come back.
_HALF, _DIGITS = Decimal("0.5"), 60
_MICRO = {
    "m": Decimal(10) ** 6,
    "mm": Decimal(1000),
    "um": Decimal(1),
    "µm": Decimal(1),
    "nm": Decimal("0.001"),
}
_PROPERTY = re.compile("[a-z][a-zA-Z0-9_]*")  # what the viewer takes as a property's name
_TYPES = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "float32",
    "uint64",
    "int64",
    "float64",
    "bool",
)
_COLOURS = ("rgb", "rgba")  # as "#rrggbb", or one number


def read_neuroglancer(path: Path) -> PointTable:
    """Point annotations of a viewer state, a link that carries one, a layer, or a bare list of annotations.

    Axes are found by their names. Properties become columns, and so does `layer` where several layers hold
    points; lines, boxes and ellipsoids are counted in a warning and left out.
    """
    content = load_json(path)
    state = content if isinstance(content, Mapping) else {}
    if "layers" in state:
        layers = state["layers"]
        if isinstance(layers, Mapping):  # of states before 2018: by name
            named = layers.items()
            layers = [{"name": name, **layer} for name, layer in named if isinstance(layer, Mapping)]
    else:
        layers = [content] if isinstance(content, Mapping) else [{"annotations": content}]
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise CanvasError(f"{path}: 'layers' is no list of layers")
    if not (layers := [layer for layer in layers if "annotations" in layer]):
        raise CanvasError(_no_annotations(path, state.get("layers")))
    parts = [_layer(path, layer, state.get("dimensions")) for layer in layers]
    parts = [part for part in parts if len(part.zyx)] or parts[:1]
    if not len(parts[0].zyx) and any(layer["annotations"] for layer in layers):
        raise CanvasError(
            f"{path} holds annotations and none is a point (lines, boxes and ellipsoids are not read); "
            "draw points"
        )
    if len({part.meta.get("voxel_um") for part in parts}) > 1:
        raise CanvasError(f"{path}: its layers have different dimensions; keep one layer a file")
    if len(parts) == 1:
        return PointTable(
            parts[0].zyx, {k: v for k, v in parts[0].columns.items() if k != "layer"}, parts[0].meta
        )
    shared = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in shared}
    return PointTable(np.concatenate([part.zyx for part in parts]), columns, parts[0].meta)


def _no_annotations(path: Path, layers: Any) -> str:
    """What a state without annotations of its own shows instead."""
    listed = layers if isinstance(layers, list) else []
    for layer in listed:
        source = layer.get("source") if isinstance(layer, Mapping) else None
        address = source.get("url") if isinstance(source, Mapping) else source
        if isinstance(address, str) and layer.get("type") == "annotation":
            return (
                f"{path} holds no annotations of its own, they are at {address}; copy that folder to the "
                "disk and give it"
            )
    return f"{path} holds no layer with annotations; expected a Neuroglancer state or layer"


def write_neuroglancer(points: PointTable, path: Path, *, voxel_um: tuple[float, float, float]) -> None:
    """Write a state with one annotation layer for the viewer's state editor; numbers become properties.

    The viewer shows properties as float32 or 32-bit integers; the file holds them in full. A column
    `description` is shown as text.
    """
    dimensions = {
        axis: [float(Decimal(repr(float(size))).scaleb(-6)), "m"]
        for axis, size in zip("xyz", reversed(voxel_um), strict=True)
    }
    numeric = {
        name: values
        for name, values in points.columns.items()
        if values.dtype.kind in "iufb" and _PROPERTY.fullmatch(name)
    }
    texts = points.columns.get("description")
    if dropped := [name for name in points.columns if name not in numeric and name != "description"]:
        _log.warning("%s cannot hold the columns %s; they were left out", path, ", ".join(dropped))
    properties = [{"id": name, "type": _type(values)} for name, values in numeric.items()]
    layer: dict[str, Any] = {
        "type": "annotation",
        "name": path.stem,
        "source": {"url": "local://annotations", "transform": {"outputDimensions": dimensions}},
        "tab": "annotations",
    }
    if properties:
        layer["annotationProperties"] = properties
    head = json.dumps({"dimensions": dimensions, "layers": [layer]}, ensure_ascii=False)
    assert head.endswith("}]}")

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(head.removesuffix("}]}") + ', "annotations": [')
            props = (
                list(zip(*(values.tolist() for values in numeric.values()), strict=True)) if numeric else []
            )
            for row, point in enumerate(_corners(points.zyx)):
                file.write(f'{"," if row else ""}\n{{"type": "point", "id": "{row + 1}", "point": {point}')
                if props:
                    file.write(f', "props": {json.dumps([_plain(value) for value in props[row]])}')
                if texts is not None:
                    file.write(f', "description": {json.dumps(str(texts[row]), ensure_ascii=False)}')
                file.write("}")
            file.write("\n]}]}\n")

    write_atomic(path, write)


def _corners(zyx: np.ndarray) -> Iterator[str]:
    """Positions as [x, y, z] half a voxel on, in the shortest decimals that read back unchanged."""
    with localcontext() as context:
        context.prec = _DIGITS
        for row in zyx[:, ::-1].tolist():
            yield "[" + ", ".join(format(Decimal(repr(value)) + _HALF, "f") for value in row) + "]"


def _layer(path: Path, layer: Mapping[str, Any], global_dimensions: Any) -> PointTable:
    source = layer.get("source", {})
    source = source[0] if isinstance(source, list) and source else source
    transform = source.get("transform", {}) if isinstance(source, Mapping) else {}
    if isinstance(transform, Mapping) and not _is_identity(transform.get("matrix")):
        raise CanvasError(f"{path}: its annotations have a transform; only such without one are read")
    dimensions = (
        transform.get("outputDimensions") if isinstance(transform, Mapping) else None
    ) or global_dimensions
    names, meta = axes_of(path, dimensions)
    own = transform.get("inputDimensions") if isinstance(transform, Mapping) else None
    if own is not None:  # the positions are in the layer's own units; the output's are how they are shown
        if not isinstance(own, Mapping) or len(own) != len(names):
            raise CanvasError(f"{path}: its inputDimensions are {own}; expected one for each of {names}")
        _, meta = axes_of(path, dict(zip(names, own.values(), strict=True)))
    annotations = layer["annotations"]
    if not isinstance(annotations, list):
        raise CanvasError(f"{path}: 'annotations' is no list; expected Neuroglancer's local annotations")
    point_annotations = [
        row for row in annotations if isinstance(row, Mapping) and row.get("type", "point") == "point"
    ]
    if n_skipped := len(annotations) - len(point_annotations):
        _log.warning(
            "%s: %d of %d annotations are no points; they were left out", path, n_skipped, len(annotations)
        )
    zyx = np.empty((len(point_annotations), 3))
    with localcontext() as context:
        context.prec = _DIGITS
        for row, annotation in enumerate(point_annotations):
            point = annotation.get("point")
            if not isinstance(point, list) or len(point) != len(names):
                raise CanvasError(
                    f"{path}: annotation {row + 1} has the point {point}; expected [{', '.join(names)}]"
                )
            for axis, name in enumerate("zyx"):
                value = point[names.index(name)]
                if not isinstance(value, int | Decimal):
                    raise CanvasError(f"{path}: annotation {row + 1} has the point {point}; expected numbers")
                zyx[row, axis] = float(Decimal(value) - _HALF)
    _check_one_place(path, names, point_annotations)
    columns = _columns(path, layer, point_annotations)
    columns["layer"] = np.full(len(point_annotations), str(layer.get("name", "")))
    return PointTable(zyx, columns, meta)


def _check_one_place(path: Path, names: Sequence[str], annotations: Sequence[Mapping[str, Any]]) -> None:
    """Raise CanvasError for points at several places of a further axis, as of time."""
    for place, name in enumerate(names):
        count = len({annotation["point"][place] for annotation in annotations}) if name not in "zyx" else 1
        if count > 1:
            raise CanvasError(
                f"{path} holds points at {count} places of the axis {name!r}, and points are of one volume; "
                "keep those of one"
            )


def _is_identity(matrix: Any) -> bool:
    if matrix is None:
        return True
    rows = matrix if isinstance(matrix, list) else [matrix]
    return all(
        isinstance(row, list)
        and len(row) == len(rows) + 1
        and all(value == (at == place) for place, value in enumerate(row))
        for at, row in enumerate(rows)
    )


def axes_of(path: Path, dimensions: Any) -> tuple[list[str], dict[str, str]]:
    """Axis names in order, and the voxel size if it is stated in metres."""
    if dimensions is None:
        return ["x", "y", "z"], {}
    if not isinstance(dimensions, Mapping) or not {"z", "y", "x"} <= set(dimensions):
        raise CanvasError(f"{path}: its dimensions are {dimensions}; expected z, y and x among them")
    sizes = []
    for axis in "zyx":
        try:
            scale, unit = dimensions[axis]
            sizes.append(Decimal(scale) * _MICRO[unit])
        except (TypeError, ValueError, KeyError):
            return list(dimensions), {}
    return list(dimensions), {"voxel_um": " ".join(repr(float(size)) for size in sizes)}


def _columns(path: Path, layer: Mapping[str, Any], kept: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    properties = layer.get("annotationProperties") or []
    if not isinstance(properties, list):
        raise CanvasError(f"{path}: 'annotationProperties' is {properties!r}; expected a list of properties")
    rows = [_props(path, row, len(properties)) for row in kept]
    for place, declared in enumerate(properties):
        if not isinstance(declared, Mapping):
            raise CanvasError(
                f"{path}: the property {declared!r} has no type; expected an object with id and type"
            )
        values = [row[place] for row in rows]
        name = str(declared.get("id", place))
        if re.fullmatch("[zyxZYX]", name):
            continue
        if declared.get("type") in _COLOURS:
            columns[name] = np.array([_colour(value) for value in values], np.str_)
            continue
        if declared.get("type") not in _TYPES:
            _log.warning("%s: the property %r of type %r is left out", path, name, declared.get("type"))
            continue
        if not all(isinstance(value, int | Decimal | None) for value in values):
            raise CanvasError(f"{path}: the property {name!r} holds something else than numbers")
        columns[name] = _numbers(values, whole="float" not in declared["type"])
    if any("description" in row for row in kept):
        columns["description"] = np.array([str(row.get("description", "")) for row in kept], dtype=np.str_)
    return columns


def _numbers(values: Sequence[int | Decimal | None], *, whole: bool) -> np.ndarray:
    if whole and None not in values and all(value == int(value) for value in values if value is not None):
        integers = [int(value) for value in values if value is not None]
        return np.array(integers, np.int64 if all(-(2**63) <= n < 2**63 for n in integers) else np.uint64)
    return np.array([math.nan if value is None else float(value) for value in values])


def _colour(value: Any) -> str:
    return f"#{value:06x}" if isinstance(value, int) else str(value or "")


def _props(path: Path, annotation: Mapping[str, Any], count: int) -> list[Any]:
    """An annotation's properties, None where absent: the viewer shows the default there."""
    props = annotation.get("props") or []
    if not isinstance(props, list) or len(props) > count:
        raise CanvasError(f"{path}: an annotation has the properties {props!r}; its layer declares {count}")
    return props + [None] * (count - len(props))


def _type(values: np.ndarray) -> str:
    fits_int32 = values.dtype.kind in "iub" and (
        not len(values) or np.abs(values.astype(np.float64)).max() < 2**31
    )
    return "int32" if fits_int32 else "float32"


def _plain(value: Any) -> Any:
    """NaN as null, since JSON has no NaN; Neuroglancer reads null as the property's default."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(value) if isinstance(value, bool) else value
