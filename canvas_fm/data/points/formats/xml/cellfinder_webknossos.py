"""Points as cellfinder XML and WebKnossos NML, parsed incrementally; document types are refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from canvas_fm.data.points.formats.xml.xml_reader import number, parse
from canvas_fm.data.points.label_values import as_labels
from canvas_fm.data.points.tables import PointTable
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_atomic

_log = logging.getLogger(__name__)
_TREES = {1: "cells", 0: "no cells", -1: "unsure"}  # of an NML, by label
_LARGEST = 2.0**53  # beyond, a float64 no longer holds each whole number
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
_AXES = ("z", "y", "x")
# What a scale of NML may be in; without a unit it is nanometres.
_UM = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
       "nm": 1e-3, "um": 1.0, "µm": 1.0, "mm": 1e3, "m": 1e6}  # fmt: skip
_CELLFINDERS_IMAGE = "placeholder.tif"  # in ImageJ's Cell Counter it is the name of the image


def read_cellfinder(path: Path) -> PointTable:
    """The markers of a cellfinder (or ImageJ Cell Counter) XML in file order, with their `type`.

    Type 2 is a cell and 1 is not, or is not classified yet.
    """
    types: list[int] = []
    zyx: list[float] = []
    current: int | None = None
    typed = 0  # markers whose type is known
    image = ""
    marker: dict[str, float] = {}
    text = [""]

    def start(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal current
        text[0] = ""
        if name == "Marker":
            marker.clear()
        elif name == "Marker_Type":
            current = None

    def end(name: str) -> None:
        nonlocal current, typed, image
        if name == "Image_Filename":
            image = text[0].strip()
        elif name == "Type":
            kind = number(path, "Type", text[0])
            if kind != int(kind):
                raise CanvasError(
                    f"{path}: a Type is {text[0].strip()}; cellfinder's types are whole numbers"
                )
            current = int(kind)
        elif name in ("MarkerZ", "MarkerY", "MarkerX"):
            marker[name[-1].lower()] = number(path, name, text[0])
        elif name == "Marker":
            if missing := [axis for axis in _AXES if axis not in marker]:
                raise CanvasError(
                    f"{path}: marker {len(types) + 1} has no Marker{missing[0].upper()}; expected X, Y and Z"
                )
            zyx.extend(marker[axis] for axis in _AXES)
            types.append(0)
        elif name == "Marker_Type":  # whose Type may stand after its markers
            if current is None and len(types) > typed:
                raise CanvasError(f"{path}: marker {typed + 1} stands in a Marker_Type without a Type")
            types[typed:] = [current or 0] * (len(types) - typed)
            typed = len(types)

    def data(piece: str) -> None:
        text[0] += piece

    parse(path, "CellCounter_Marker_File", "cellfinder XML", start, end, data)
    if image not in ("", _CELLFINDERS_IMAGE) and zyx:
        _log.warning(
            "%s is of ImageJ's Cell Counter (image %s), which counts slices from 1, so z may be one too "
            "large: canvas-fm points convert --origin -1 0 0 takes it off",
            path,
            image,
        )
    return PointTable(np.array(zyx, np.float64).reshape(-1, 3), {"type": np.array(types, np.int64)}, {})


def write_cellfinder(points: PointTable, path: Path) -> None:
    """Write one marker a point, grouped by the column `type` (default 2, cells), in whole voxels.

    Without one, `label` 1 is type 2 and 0 is type 1; rows of -1 (unsure), which cellfinder has no type for,
    are left out with a warning. cellfinder cuts fractions off, so positions are rounded to the nearest voxel
    here, which a warning counts.
    """
    points, written = _typed(points, path)
    types = points.columns.get("type", np.full(len(points.zyx), 2))
    if types.dtype.kind not in "iu":
        raise CanvasError(
            f"{path}: the column 'type' holds {types[:1]}; cellfinder's types are whole numbers"
        )
    if len(points.zyx) and np.abs(points.zyx).max() >= _LARGEST:
        raise CanvasError(
            f"{path}: a position is {np.abs(points.zyx).max():g} voxels from the origin; expected less than "
            f"{_LARGEST:g}: are these really voxels?"
        )
    voxels = np.floor(points.zyx + 0.5).astype(np.int64)
    if moved := int((voxels != points.zyx).any(axis=1).sum()):
        _log.warning("%s holds whole voxels: %d of %d positions were rounded", path, moved, len(points.zyx))
    _warn_dropped(points, path, written)

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(
                '<?xml version="1.0" encoding="UTF-8"?>\n<CellCounter_Marker_File>\n  <Image_Properties>\n'
                "    <Image_Filename>placeholder.tif</Image_Filename>\n  </Image_Properties>\n"
                "  <Marker_Data>\n    <Current_Type>1</Current_Type>\n"
            )
            for kind in np.unique(types).tolist():
                file.write(f"    <Marker_Type>\n      <Type>{kind}</Type>\n")
                for z, y, x in voxels[types == kind].tolist():
                    file.write(
                        f"      <Marker>\n        <MarkerX>{x}</MarkerX>\n        <MarkerY>{y}</MarkerY>\n"
                        f"        <MarkerZ>{z}</MarkerZ>\n      </Marker>\n"
                    )
                file.write("    </Marker_Type>\n")
            file.write("  </Marker_Data>\n</CellCounter_Marker_File>\n")

    write_atomic(path, write)


def read_webknossos(path: Path) -> PointTable:
    """The nodes of an NML in file order; columns `tree` (or `label`, of our own trees) and `comment`."""
    trees: list[str] = []
    ids: list[str] = []
    zyx: list[float] = []
    comments: dict[str, str] = {}
    meta: dict[str, str] = {}
    tree = ""

    def start(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal tree
        if name == "scale":
            unit = attributes.get("unit", "nanometer")
            if unit not in _UM:
                raise CanvasError(f"{path}: the scale is in {unit!r}; known are {', '.join(_UM)}")
            sizes = [number(path, axis, attributes.get(axis)) * _UM[unit] for axis in _AXES]
            meta["voxel_um"] = " ".join(repr(float(f"{size:.12g}")) for size in sizes)
        elif name == "thing":
            tree = attributes.get("name") or attributes.get("id", "")
        elif name == "node":
            zyx.extend(number(path, axis, attributes.get(axis)) for axis in _AXES)
            ids.append(attributes.get("id", ""))
            trees.append(tree)
        elif name == "comment":
            comments[attributes.get("node", "")] = attributes.get("content", "")

    parse(path, "things", "an NML", start, lambda name: None, lambda piece: None)
    columns: dict[str, np.ndarray] = {}
    if len(set(trees)) > 1 and set(trees) <= set(_TREES.values()):
        label = {tree: value for value, tree in _TREES.items()}
        columns["label"] = np.array([label[tree] for tree in trees], np.int64)
    elif len(set(trees)) > 1:
        columns["tree"] = np.array(trees)
    if comments:
        columns["comment"] = np.array([comments.get(node, "") for node in ids], dtype=np.str_)
    return PointTable(np.array(zyx, np.float64).reshape(-1, 3), columns, meta)


def write_webknossos(points: PointTable, path: Path, *, voxel_um: tuple[float, float, float]) -> None:
    """Write one node a point; trees by the column `tree`, else `label`, comments by the column `comment`."""
    written = {"tree", "comment"}
    if "tree" not in points.columns and (label := _labels(points)) is not None:
        named = np.array([_TREES[value] for value in label.tolist()], dtype=np.str_)
        points, written = points._replace(columns=points.columns | {"tree": named}), written | {"label"}
    trees = points.columns.get("tree", np.full(len(points.zyx), "cells")).astype(np.str_)
    comments = points.columns.get("comment", np.full(len(points.zyx), "")).astype(np.str_)
    for text in (*trees.tolist(), *comments.tolist()):
        if _NOT_XML.search(text):
            raise CanvasError(f"{path}: XML cannot hold the control characters of {text!r}; take them out")
    _warn_dropped(points, path, written)
    scale = " ".join(f'{axis}="{float(f"{1000 * size:.12g}")!r}"' for axis, size in _named(voxel_um))

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(
                '<?xml version="1.0" encoding="UTF-8"?>\n<things>\n  <parameters>\n    <experiment name='
            )
            file.write(f'{quoteattr(path.stem)}/>\n    <scale {scale} unit="nanometer"/>\n  </parameters>\n')
            names, first = np.unique(trees, return_index=True)
            for number, tree in enumerate(names[np.argsort(first)].tolist(), start=1):
                file.write(
                    f'  <thing id="{number}" name={quoteattr(tree)} color.r="1" color.g="0.8" color.b="0" '
                )
                file.write('color.a="1">\n    <nodes>\n')
                for row in np.flatnonzero(trees == tree).tolist():
                    place = " ".join(
                        f'{axis}="{value!r}"' for axis, value in _named(points.zyx[row].tolist())
                    )
                    file.write(f'      <node id="{row + 1}" radius="1.0" {place} inVp="0" inMag="0"/>\n')
                file.write("    </nodes>\n    <edges/>\n  </thing>\n")
            file.write("  <branchpoints/>\n  <comments>\n")
            for row in np.flatnonzero(comments != "").tolist():
                file.write(f'    <comment node="{row + 1}" content={quoteattr(str(comments[row]))}/>\n')
            file.write("  </comments>\n  <groups/>\n</things>\n")

    write_atomic(path, write)


def _named(zyx: Sequence[float]) -> list[tuple[str, float]]:
    z, y, x = zyx
    return [("x", x), ("y", y), ("z", z)]


def _labels(points: PointTable) -> np.ndarray | None:
    """The column `label` where it holds cells (1), none (0) and unsure or unlabelled ones (-1) alone."""
    label = points.columns.get("label")
    return None if label is None else as_labels(label)


def _typed(points: PointTable, path: Path) -> tuple[PointTable, set[str]]:
    """Points with cellfinder's `type` made from their labels, and the columns that are kept in it."""
    label = _labels(points)
    if "type" in points.columns or label is None:
        return points, {"type"}
    sure = label >= 0
    if not sure.all():
        _log.warning(
            "%s: %d of %d rows are labelled neither cell nor none and are left out; cellfinder has no such "
            "type",
            path,
            int((~sure).sum()),
            len(sure),
        )
    columns = {name: values[sure] for name, values in points.columns.items()}
    return points._replace(zyx=points.zyx[sure], columns=columns | {"type": label[sure] + 1}), {
        "type",
        "label",
    }


def _warn_dropped(points: PointTable, path: Path, written: set[str]) -> None:
    if dropped := [name for name in points.columns if name not in written]:
        _log.warning("%s cannot hold the columns %s; they were left out", path, ", ".join(dropped))
