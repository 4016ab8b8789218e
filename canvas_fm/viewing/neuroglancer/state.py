"""Neuroglancer's state of a view: its layers, their shaders, position and layout, as JSON."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from canvas_fm.data.precomputed.write_annotations import dimensions_of
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.viewing.neuroglancer.scene import PointsLayer, Scene, VolumeLayer

BASE = "BASE"  # in sources: the address of the data set, which the page knows
_CHANNELS = ("#ffffff", "#00ff00", "#ff00ff", "#00ffff", "#ffff00")
_WIDE = 700  # pixels of a panel, about

_IMAGE = """#uicontrol invlerp contrast
#uicontrol vec3 color color(default="{colour}")
void main() {{
  emitRGB(color * contrast());
}}
"""
_HEAT_MAP = """#uicontrol invlerp contrast
void main() {
  float value = contrast();
  emitRGBA(vec4(min(1.0, 2.0 * value), max(0.0, 2.0 * value - 1.0), 0.2 * value, value));
}
"""


def state_of(scene: Scene, base: str = BASE) -> dict[str, Any]:
    """The state; sources begin with `base`, the address of the data set."""
    first = scene.first
    z, y, x = (at + 0.5 for at in scene.start_zyx)  # from a voxel's centre to Neuroglancer's corner
    channels = [layer.name for layer in scene.volumes if layer.kind == "volume"]
    state: dict[str, Any] = {
        "dimensions": dimensions_of(first.voxel_um),
        "position": [x, y, z],
        "crossSectionScale": min(max(max(first.shape_zyx[1:]) / _WIDE / 2, 0.25), 2.0),
        "projectionScale": 1.6 * _longest_um(first) / min(first.voxel_um),
        "layers": [
            *(_volume(layer, base, channels) for layer in scene.volumes),
            *(_points(layer, base) for layer in scene.points),
        ],
        "layout": "4panel",
        "showSlices": False,
    }
    if scene.points:
        state["selectedLayer"] = {"layer": scene.points[0].name, "visible": True}
    return state


def fragment_of(state: dict[str, Any]) -> str:
    """The state as the fragment of the viewer's address."""
    return "#!" + quote(json.dumps(state, separators=(",", ":"), ensure_ascii=False), safe="")


def _longest_um(volume: Volume) -> float:
    return max(size * um for size, um in zip(volume.shape_zyx, volume.voxel_um, strict=True))


def _volume(layer: VolumeLayer, base: str, channels: list[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": layer.name, "source": f"precomputed://{base}/{layer.key}"}
    if layer.kind == "labels":
        return shown | {"type": "segmentation", "selectedAlpha": 0.3, "notSelectedAlpha": 0.15}
    shown |= {"type": "image", "shaderControls": {"contrast": _contrast(layer)}}
    if layer.kind == "heat map":
        return shown | {"shader": _HEAT_MAP, "opacity": 0.6}
    colour = _CHANNELS[(channels.index(layer.name) + (len(channels) > 1)) % len(_CHANNELS)]
    shown |= {"shader": _IMAGE.format(colour=colour)}
    return shown | ({"opacity": 1, "blend": "additive"} if len(channels) > 1 else {"opacity": 1})


def _contrast(layer: VolumeLayer) -> dict[str, Any]:
    """The intensity window, with as much room on both sides."""
    try:
        low, high = (float(value) for value in layer.volume.window[:2])
    except CanvasError:  # constant: nothing to see, whatever the window
        low, high = 0.0, 1.0
    if layer.kind == "heat map" and layer.volume.dtype.kind == "f":
        low, high = 0.0, 1.0
    numbers: list[float] = [low, high]
    if layer.volume.dtype.kind in "iu":
        numbers = [int(low), max(int(high), int(low) + 1)]
    return {"range": numbers, "window": [min(numbers[0], 0), numbers[1] * 2 - numbers[0]]}


def _points(layer: PointsLayer, base: str) -> dict[str, Any]:
    return {
        "name": layer.name,
        "type": "annotation",
        "source": f"precomputed://{base}/{layer.key}",
        "shader": layer.colouring.shader,
        "tab": "rendering",
        "codeVisible": False,
    }
