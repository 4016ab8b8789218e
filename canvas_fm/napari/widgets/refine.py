"""Widget: P(cell) of the points of a layer by a refiner, and the count with its interval."""

from __future__ import annotations

from typing import Any

from magicgui.widgets import CheckBox, Container, PushButton
from napari.layers import Image
from napari.layers import Points as PointsLayer

from canvas_fm.data.points.points import Points
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.napari.background import BackgroundWork, shows_errors
from canvas_fm.napari.layers import points_layer, points_of, volume_of
from canvas_fm.napari.widgets.choices import LayerChoice, ModelChoice


class RefineWidget(Container):
    """Computes the column that `canvas-fm refine apply` writes."""

    def __init__(self, napari_viewer: Any) -> None:
        self._viewer = napari_viewer
        self.image = LayerChoice(napari_viewer, Image, "Volume")
        self.cells = LayerChoice(napari_viewer, PointsLayer, "Candidates")
        self.model = ModelChoice("refiner", "refiner-all")
        self.cells_only = CheckBox(text="Only those at or above the threshold")
        self.resample = CheckBox(text="Resample to the models' voxel size")
        self.start = PushButton(text="Refine")
        self.work = BackgroundWork()
        fields = Container(widgets=[self.image, self.cells, *self.model.widgets])
        super().__init__(
            widgets=[fields, self.cells_only, self.resample, self.start, self.work], labels=False
        )
        self.start.changed.connect(lambda *_: self.refine())

    @shows_errors
    def refine(self) -> None:
        """Start refinement in a thread; the candidates with P(cell) become a points layer."""
        image, cells = self.image.layer, self.cells.layer
        candidates = points_of(cells, image)
        reference = self.model.reference
        options = {"resample": self.resample.value, "cells_only": self.cells_only.value}

        def work() -> Points:
            return refine(Refiner.load(reference), volume_of(image), candidates, show=False, **options)

        def done(refined: Points) -> str:
            data, about, _ = points_layer(refined, f"{cells.name}, refined", image)
            self._viewer.add_points(data, **about)
            meta = refined.meta
            low, high = (float(value) for value in meta["expected_cells_90"].split())
            expected = f"{float(meta['expected_cells']):,.0f} ({low:,.0f} to {high:,.0f})"
            return f"{meta['count_of']}: {expected}, 90 %\n{meta.get('count_notes', '')}".strip()

        self.work.run("refining", work, done)
