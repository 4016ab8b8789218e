"""A static data set of a view: volumes, labels and points as precomputed layers, with page and state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from canvas_fm.data.points.tables import PointTable
from canvas_fm.data.precomputed.shards import Encoding
from canvas_fm.data.precomputed.write_annotations import write_precomputed
from canvas_fm.data.precomputed.write_image import write_image
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import disk_full_as_error, removed_on_error, write_text_atomic
from canvas_fm.viewing.neuroglancer.client import ONLINE
from canvas_fm.viewing.neuroglancer.scene import Scene, open_scene
from canvas_fm.viewing.neuroglancer.state import state_of

STATE, PAGE = "state.json", "index.html"
_README = """{title}

A data set for Neuroglancer: volumes/ and points/ hold precomputed layers, state.json what is shown of them.

To look at it on this machine:  canvas-fm view {name}
On a web server: copy this folder to where it serves files, and open the folder's address. The server has to
answer requests for parts of a file (HTTP ranges), as nginx, Apache, Caddy and object stores do, and
`python -m http.server` does not. The page loads the viewer from
{viewer}
so the folder has to be reached by https and allow requests from there (Access-Control-Allow-Origin).
state.json is also for Neuroglancer's own state editor: put the folder's address in place of BASE.
Read the points back:  canvas-fm points convert {name}/points/NAME cells.csv
"""


def export_view(
    volumes: Sequence[str | Path],
    out: str | Path,
    *,
    points: Sequence[str | Path] = (),
    labels: Sequence[str | Path] = (),
    heat_maps: Sequence[str | Path] = (),
    color_by: str | None = None,
    encoding: Encoding = "gzip",
    viewer: str = ONLINE,
    **volume_options: Any,
) -> dict[str, Any]:
    """Write a new folder that any web server serves; returns its files, bytes, layers and points.

    Volumes become sharded pyramids, one file for 33.5 M voxels; points a sharded spatial index with their
    columns as properties. The state is written last. `viewer` is the address of the Neuroglancer that the
    page opens the layers with.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CanvasError(f"{out} exists already and is not empty; delete it or choose another name")
    scene = open_scene(
        volumes, points=points, labels=labels, heat_maps=heat_maps, color_by=color_by, **volume_options
    )
    with removed_on_error(out), disk_full_as_error(out):
        out.mkdir(parents=True, exist_ok=True)
        for layer in scene.volumes:
            write_image(layer.volume, out / layer.key, layer=layer.shown_as, encoding=encoding)
        write_points(scene, out, encoding)
        write_page(scene, out, viewer)
    files = [path for path in out.rglob("*") if path.is_file()]
    return {
        "written": str(out),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "layers": [*(layer.name for layer in scene.volumes), *(layer.name for layer in scene.points)],
        "points": sum(len(layer.points) for layer in scene.points),
        "viewer": viewer,
    }


def write_points(scene: Scene, out: Path, encoding: Encoding = "gzip") -> None:
    """Write the points of a view; their voxels are those of the first volume."""
    first = scene.first
    for layer in scene.points:
        points = layer.points
        table = PointTable(points.zyx, points.columns, points.meta)
        write_precomputed(
            table, out / layer.key, voxel_um=first.voxel_um, shape_zyx=first.shape_zyx, encoding=encoding
        )


def write_page(scene: Scene, out: Path, viewer: str) -> None:
    """Write the page with its legend, the README and, last, the state."""
    title = ", ".join(layer.name for layer in scene.volumes)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    layers = [
        {"name": layer.name, "count": len(layer.points), "colouring": layer.colouring}
        for layer in scene.points
    ]
    page = environment.get_template("page.html").render(title=title, layers=layers, viewer=viewer)
    write_text_atomic(out / PAGE, page)
    write_text_atomic(out / "README.txt", _README.format(title=title, name=out.resolve().name, viewer=viewer))
    write_text_atomic(out / STATE, json.dumps(state_of(scene), indent=1, ensure_ascii=False))
