"""napari as a person uses it: open a volume, detect, refine, like cells, review; writes rows and pictures.

`python tests/napari/drive_viewer.py VOLUME OUT DETECTOR REFINER` with a display (Xvfb is one).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import napari
from npe2 import PluginManager, PluginManifest
from qtpy.QtWidgets import QApplication

import canvas_fm
from canvas_fm.data.points.points import Points
from canvas_fm.napari.layers import points_of


def until_done(widget: object, within_s: float = 600) -> str:
    end = time.monotonic() + within_s
    while widget.work.running:  # type: ignore[attr-defined]
        assert time.monotonic() < end, "the widget's work did not end"
        QApplication.processEvents()
        time.sleep(0.02)
    return str(widget.work.text.value)  # type: ignore[attr-defined]


def main(volume: str, out: Path, detector: str, refiner: str) -> None:
    plugins, name = PluginManager.instance(), "canvas-fm"
    if name not in plugins:  # a checkout that is not installed
        plugins.register(PluginManifest.from_file(Path(canvas_fm.__file__).parent / "napari/napari.yaml"))
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1500, 950)
    (image,) = viewer.open(volume, plugin=name)

    def open_widget(title: str) -> object:
        return viewer.window.add_plugin_dock_widget(name, title, tabify=True)[1]

    detect, refine = open_widget("Detect cells"), open_widget("Refine detections")
    detect.model.name.value = detector
    detect.detect()
    print(until_done(detect))
    points_of(viewer.layers[-1], image).write(out / "cells.csv")
    viewer.dims.set_point(0, 32 * image.scale[0])
    viewer.screenshot(out / "detected.png", canvas_only=False)
    refine.model.name.value = refiner
    refine.refine()
    print(until_done(refine))
    refined = viewer.layers[-1]
    points_of(refined, image).write(out / "refined.csv")
    viewer.screenshot(out / "refined.png", canvas_only=False)
    similar = open_widget("Cells like this")
    similar.cells.value = refined
    refined.selected_data = {int(refined.features["p_cell"].argmax())}
    similar.count.value = 20
    similar.search()
    print(until_done(similar))
    viewer.screenshot(out / "similar.png", canvas_only=False)
    viewer.layers[-1].visible = False
    review = open_widget("Review cells")
    review.cells.value, review.out.value = refined, out / "labels.csv"
    review.begin()
    print(until_done(review))
    for _ in range(60):
        review.answer(int(refined.features["p_cell"][review._row] >= 0.5))
        QApplication.processEvents()
    viewer.screenshot(out / "review.png", canvas_only=False)
    review.finish()
    assert len(Points.read(out / "labels.csv")) == len(refined.data)
    viewer.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])
