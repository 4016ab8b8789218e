"""Widget: the points of a layer whose surroundings look most like those of the selected ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from magicgui.widgets import CheckBox, Container, PushButton, SpinBox
from napari.layers import Image
from napari.layers import Points as PointsLayer

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError, counted
from canvas_fm.files.shipped import DEFAULT_ENCODER
from canvas_fm.inference.embed.embed import embed
from canvas_fm.inference.embed.store.embedding_store import points_sha256
from canvas_fm.models.load_model import load
from canvas_fm.napari.background import BackgroundWork, shows_errors
from canvas_fm.napari.layers import colour_scale, points_layer, points_of, volume_of
from canvas_fm.napari.widgets.choices import LayerChoice, ModelChoice


class SimilarWidget(Container):
    """Embeds the points of a layer once, then ranks them by the selected ones."""

    def __init__(self, napari_viewer: Any) -> None:
        self._viewer = napari_viewer
        self.image = LayerChoice(napari_viewer, Image, "Volume")
        self.cells = LayerChoice(napari_viewer, PointsLayer, "Cells")
        self.model = ModelChoice("encoder", DEFAULT_ENCODER)
        self.count = SpinBox(label="How many", value=50, min=1, max=100_000)
        self.resample = CheckBox(text="Resample to the model's voxel size")
        self.start = PushButton(text="Cells like the selected")
        self.work = BackgroundWork()
        fields = Container(widgets=[self.image, self.cells, *self.model.widgets, self.count])
        super().__init__(widgets=[fields, self.resample, self.start, self.work], labels=False)
        self._embedded: tuple[tuple[Any, ...], np.ndarray] | None = None
        self.start.changed.connect(lambda *_: self.search())

    @shows_errors
    def search(self) -> None:
        """Embed in a thread what is not embedded yet; the nearest cells become a points layer."""
        image, layer = self.image.layer, self.cells.layer
        cells, selected = points_of(layer, image), sorted(layer.selected_data)
        if not selected:
            raise CanvasError(f"no cell is selected; select one or more of {layer.name!r} (key S)")
        reference, count, resample = self.model.reference, self.count.value, self.resample.value

        def work() -> Float32[np.ndarray, "n d"]:
            encoder = load(reference, kind="encoder")
            key = (image, encoder.sha256, points_sha256(cells), resample)
            if self._embedded is None or self._embedded[0] != key:
                vectors = embed(encoder, volume_of(image), cells.zyx, resample=resample, show=False)
                self._embedded = key, vectors
            return self._embedded[1]

        def done(vectors: Float32[np.ndarray, "n d"]) -> str:
            rows, similarity = most_similar(vectors, np.array(selected), count)
            columns = {name: values[rows] for name, values in cells.columns.items()}
            nearest = Points(cells.zyx[rows], {"similarity": similarity} | columns, cells.meta)
            data, about, _ = points_layer(nearest, f"{layer.name}, like the selected", image)
            about |= colour_scale("similarity", (float(similarity.min()), 1.0))
            self._viewer.add_points(data, **about)
            return (
                f"{counted(len(rows), 'cell')} like {len(selected)} selected, similarity "
                f"{similarity[-1]:.2f} to 1"
            )

        self.work.run("embedding", work, done)


def most_similar(
    vectors: Float32[np.ndarray, "n d"], selected: Int64[np.ndarray, " s"], count: int
) -> tuple[Int64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """Rows by cosine to the nearest selected one, the selected themselves first."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosine = (unit @ unit[selected].T).max(axis=1).astype(np.float64)
    cosine[selected] = 1.0
    order = np.lexsort((~np.isin(np.arange(len(cosine)), selected), -cosine))[:count]
    return order.astype(np.int64), cosine[order]
