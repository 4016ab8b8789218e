"""Labels of a training's volumes, opened and checked: cells, labelled boxes, masks, background channels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from canvas_fm.data.dataset.unique_names import check_one_each
from canvas_fm.data.points.boxes import as_boxes, check_boxes_inside, read_boxes
from canvas_fm.data.points.boxes import whole as whole_box
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.plausibility_checks import cells_of
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.mae.training_crops import VolumeSource
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.run.held_out_split import check_companions, open_companion

_log = logging.getLogger(__name__)


class TrainingLabels:
    """Labels of each volume, validated: as many of each kind as there are volumes."""

    def __init__(
        self,
        volumes: Sequence[Volume],
        points: Sequence[Points | str | Path],
        masks: Sequence[Volume | str | Path] | None,
        within: Sequence[Any] | None,
        background: Sequence[Volume | str | Path] | None,
        recipe: DetectorRecipe,
    ) -> None:
        several = {"points": points, "masks": masks, "within": within, "background": background}
        check_one_each(volumes, several)
        check_companions("masks", masks, recipe.target.kind == "masks", "target.kind is masks")
        if volumes or background:  # of phantoms alone the recipe draws the background too
            check_companions("background", background, recipe.model.channels == 2, "model.channels is 2")
        self._of: dict[int, tuple[Any, ...]] = {}
        for index, volume in enumerate(volumes):
            cells = points[index]
            cells, notes = cells_of(cells if isinstance(cells, Points) else Points.read(cells), "truth")
            for note in notes:
                _log.warning("%s: %s", volume.name, note)
            cells.check_inside(volume.shape_zyx)
            boxes = whole_box(volume.shape_zyx)
            if within is not None:
                path_or_boxes = within[index]
                boxes = (
                    read_boxes(path_or_boxes)
                    if isinstance(path_or_boxes, str | Path)
                    else as_boxes(path_or_boxes)
                )
                check_boxes_inside(boxes, volume.shape_zyx, volume.path)
            mask = open_companion(volume, masks, index, "mask")
            self._of[id(volume)] = (
                cells.zyx,
                boxes,
                mask,
                open_companion(volume, background, index, "background"),
            )
            try:
                recipe.tolerance_um(volume.marker)
            except ValueError as problem:
                raise CanvasError(f"{volume.path}: {problem}; or name the marker with --marker") from problem

    def of(self, sources: Sequence[VolumeSource]) -> list[Labelled]:
        """The labels of each volume in turn."""
        return [Labelled(source, *self._of[id(source.volume)]) for source in sources]
