"""Open a view in the browser: volumes are read as they are looked at, points are indexed first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from canvas_fm.errors import CanvasError
from canvas_fm.viewing.neuroglancer.client import ONLINE, Client, need_neuroglancer
from canvas_fm.viewing.neuroglancer.export import STATE, write_page, write_points
from canvas_fm.viewing.neuroglancer.scene import open_scene
from canvas_fm.viewing.neuroglancer.server import ViewServer, VolumeChunks
from canvas_fm.viewing.neuroglancer.state import BASE, fragment_of


class View(NamedTuple):
    """A running view: the page's address, and its state as a link for whoever can reach the same address."""

    url: str
    state_url: str
    server: ViewServer


@contextmanager
def open_view(
    volumes: Sequence[str | Path],
    *,
    points: Sequence[str | Path] = (),
    labels: Sequence[str | Path] = (),
    heat_maps: Sequence[str | Path] = (),
    color_by: str | None = None,
    port: int = 0,
    **volume_options: Any,
) -> Iterator[View]:
    """Context manager: a server of the view on this machine, closed at the end.

    One folder that `export_view` wrote is served as it is. Raises MissingExtra without the wheel.
    """
    need_neuroglancer()
    exported = [Path(path) for path in volumes if (Path(path) / STATE).is_file()]
    if exported:
        if len(volumes) > 1 or points or labels or heat_maps:
            raise CanvasError(f"{exported[0]} is an exported view; give it alone")
        yield from _served(exported[0], {}, port)
        return
    scene = open_scene(
        volumes, points=points, labels=labels, heat_maps=heat_maps, color_by=color_by, **volume_options
    )
    with tempfile.TemporaryDirectory(prefix="canvas-fm-view-") as folder:
        write_points(scene, Path(folder), "raw")
        write_page(scene, Path(folder), ONLINE)
        yield from _served(Path(folder), {layer.key: VolumeChunks(layer) for layer in scene.volumes}, port)


def _served(folder: Path, volumes: Mapping[str, VolumeChunks], port: int) -> Iterator[View]:
    """Start the server of the data first: the viewer's state holds its address."""
    server = ViewServer(folder, volumes, port)
    server.start()
    try:
        text = (folder / STATE).read_text(encoding="utf-8")
        state = json.loads(text.replace(f"precomputed://{BASE}", f"precomputed://{server.url.rstrip('/')}"))
        server.show(Client(state))
        yield View(server.url, server.url + fragment_of(state), server)
    finally:
        server.close()
