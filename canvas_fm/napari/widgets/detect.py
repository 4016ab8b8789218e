"""Widget: cells of an image layer by a detector, as a points layer."""

from __future__ import annotations

from typing import Any

from magicgui.widgets import CheckBox, Container, LineEdit, PushButton
from napari.layers import Image

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError, counted
from canvas_fm.inference.detect.detect import detect
from canvas_fm.models.load_model import load
from canvas_fm.napari.background import BackgroundWork, shows_errors
from canvas_fm.napari.layers import points_layer, volume_of
from canvas_fm.napari.widgets.choices import LayerChoice, ModelChoice


class DetectWidget(Container):
    """Finds the rows that `canvas-fm detect` finds, in a box or in the whole volume."""

    def __init__(self, napari_viewer: Any) -> None:
        self._viewer = napari_viewer
        self.image = LayerChoice(napari_viewer, Image, "Volume")
        self.model = ModelChoice("detector", "detector-phantoms")
        self.threshold = LineEdit(label="Threshold", tooltip="lowest score of a cell; empty: the model's")
        self.box = LineEdit(label="Box", tooltip="Z0 Y0 X0 Z1 Y1 X1 in voxels; empty: the whole volume")
        self.in_view = PushButton(text="Box: what is in view")
        self.resample = CheckBox(text="Resample to the model's voxel size")
        self.start = PushButton(text="Detect")
        self.work = BackgroundWork()
        fields = Container(widgets=[self.image, *self.model.widgets, self.threshold, self.box])
        super().__init__(widgets=[fields, self.in_view, self.resample, self.start, self.work], labels=False)
        self.in_view.changed.connect(lambda *_: self._take_view())
        self.start.changed.connect(lambda *_: self.detect())

    @shows_errors
    def detect(self) -> None:
        """Start detection in a thread; its cells become a points layer."""
        layer = self.image.layer
        options = self._options()
        reference = self.model.reference

        def work() -> Points:
            detector = load(reference, kind="detector")
            return detect(detector, volume_of(layer), show=False, **options)

        def done(cells: Points) -> str:
            data, about, _ = points_layer(cells, f"cells of {layer.name}", layer)
            self._viewer.add_points(data, **about)
            return f"{counted(len(cells), 'cell')} in {layer.name}"

        self.work.run("detecting", work, done)

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"resample": self.resample.value}
        if text := self.threshold.value.strip():
            options["threshold"] = _numbers(text, 1, "Threshold")[0]
        if text := self.box.value.strip():
            options["box"] = tuple(int(value) for value in _numbers(text, 6, "Box"))
        return options

    @shows_errors
    def _take_view(self) -> None:
        """Take the visible part of the plane, and all planes, as the box."""
        layer = self.image.layer
        factor = layer.downsample_factors[layer.data_level] if layer.multiscale else (1, 1, 1)
        low, high = (corner * factor for corner in layer.corner_pixels)
        shape = (layer.data[0] if layer.multiscale else layer.data).shape
        start = [0, *(max(int(value), 0) for value in low[1:])]
        stop = [shape[0], *(min(int(value) + 1, n) for value, n in zip(high[1:], shape[1:], strict=True))]
        self.box.value = " ".join(map(str, [*start, *stop]))


def _numbers(text: str, count: int, field: str) -> list[float]:
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) != count:
        raise CanvasError(f"{field} is {text!r}; expected {count} number{'s' if count > 1 else ''}")
    return values
