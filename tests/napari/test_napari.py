"""The plugin without a display: layers as volumes and points, the widgets' rows, clicks on disk."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.models.load_model import load

ROOT = Path(__file__).parents[2]
pytest.importorskip("napari", reason="napari is not installed: pip install 'canvas-fm[napari]' pytest-qt")
pytest.importorskip("pytestqt", reason="pytest-qt is not installed")

from napari.components import ViewerModel  # noqa: E402
from napari.layers import Layer  # noqa: E402
from npe2 import PluginManifest  # noqa: E402
from npe2.manifest.utils import import_python_name  # noqa: E402

from canvas_fm.napari.layers import image_layer, points_layer, points_of, volume_of, voxel_um_of  # noqa: E402
from canvas_fm.napari.reader import get_reader  # noqa: E402
from canvas_fm.napari.widgets.detect import DetectWidget  # noqa: E402
from canvas_fm.napari.widgets.refine import RefineWidget  # noqa: E402
from canvas_fm.napari.widgets.review import ReviewWidget  # noqa: E402
from canvas_fm.napari.widgets.similar import SimilarWidget, most_similar  # noqa: E402
from canvas_fm.napari.writer import write_cells  # noqa: E402

UM = (4.0, 2.0, 1.0)


@pytest.fixture(autouse=True)
def offscreen(monkeypatch):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")


@pytest.fixture
def viewer(qtbot):
    return ViewerModel()


def voxels(shape=(8, 40, 60)) -> np.ndarray:
    return np.arange(np.prod(shape)).astype(np.uint16).reshape(shape)


def finished(qtbot, widget) -> str:
    qtbot.waitUntil(lambda: not widget.work.running, timeout=60_000)
    return str(widget.work.text.value)


def test_every_command_of_the_manifest_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, file = project["entry-points"]["napari.manifest"]["canvas-fm"].partition(":")
    manifest = PluginManifest.from_file(ROOT.joinpath(*module.split("."), file))
    assert manifest.name == project["name"]
    for command in manifest.contributions.commands:
        assert callable(import_python_name(command.python_name))


def test_a_volume_opens_as_its_stored_pyramid_in_micrometres(tmp_path, qtbot):
    shape = (8, 140, 200)  # several chunks on both levels
    with cf.Volume.create(tmp_path / "a.zarr", shape, voxel_um=UM, levels=2) as writer:
        writer.write((0, 0, 0), voxels(shape))
    ((data, about, kind),) = get_reader(str(tmp_path / "a.zarr"))(str(tmp_path / "a.zarr"))
    layer = Layer.create(data, about, kind)
    assert layer.multiscale
    (coarse,) = cf.Volume.open(tmp_path / "a.zarr").coarser()
    assert [level.shape for level in data] == [shape, coarse.shape_zyx]
    assert data[1].npartitions > 1
    assert np.array_equal(np.asarray(data[0]), voxels(shape))
    assert np.array_equal(np.asarray(data[1]), coarse.read((0, 0, 0), coarse.shape_zyx))
    assert tuple(layer.scale) == UM
    assert voxel_um_of(layer) == UM
    volume = volume_of(layer)
    assert volume.path == tmp_path / "a.zarr"
    layer.scale = (5.0, 2.0, 1.0)  # what a person sets counts
    assert volume_of(layer).voxel_um == (5.0, 2.0, 1.0)


def test_any_open_image_layer_is_a_volume_in_its_scale():
    layer = Layer.create(voxels(), {"name": "a", "scale": (4000, 2000, 1000), "units": ("nm",) * 3}, "image")
    volume = volume_of(layer)
    assert np.allclose(volume.voxel_um, UM)
    assert np.array_equal(np.asarray(volume), voxels())
    with pytest.raises(CanvasError, match=r"has no voxel size; set it.*scale = \(z, y, x\)"):
        volume_of(Layer.create(voxels(), {"name": "a"}, "image"))
    with pytest.raises(CanvasError, match="expected one channel in z, y, x"):
        volume_of(Layer.create(voxels()[None], {"name": "a", "scale": (1, 4, 2, 1)}, "image"))


def test_points_come_back_from_a_layer_where_they_were():
    image = Layer.create(voxels(), {"name": "a", "scale": UM, "translate": (40, 20, 10)}, "image")
    columns = {"p_cell": np.array([0.25, 1.0], np.float32), "region": np.array(["CA1", "DG"])}
    points = Points(np.array([[1.0, 2, 3], [4.5, 5, 6]]), columns, {"volume": "a"})
    layer = Layer.create(*points_layer(points, "cells", image))
    back = points_of(layer, image)
    assert np.array_equal(back.zyx, points.zyx)
    assert back.meta == points.meta
    assert {name: values.tolist() for name, values in back.columns.items()} == {
        name: values.tolist() for name, values in columns.items()
    }
    # A layer drawn by hand lies in the world: 1 µm a step, from its origin.
    drawn = Layer.create(np.array([[44.0, 24, 13]]), {"name": "drawn"}, "points")
    assert np.array_equal(points_of(drawn, image).zyx, [[1.0, 2, 3]])
    with pytest.raises(CanvasError, match="do not lie along the axes"):
        points_of(Layer.create(np.zeros((1, 2)), {"name": "flat"}, "points"), image)


def test_cellfinders_xml_opens_and_is_saved_again(tmp_path):
    image = Layer.create(voxels(), {"scale": UM}, "image")
    labels = Points(np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]), {"label": np.array([1, 0, 1])})
    layer = Layer.create(*points_layer(labels, "cells", image))
    path = str(tmp_path / "cells.xml")
    data, about, _ = layer.as_layer_data_tuple()
    assert write_cells(path, data, about) == [path]
    ((zyx, shown, kind),) = get_reader(path)(path)
    assert kind == "points"
    assert sorted(map(tuple, zyx.tolist())) == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert dict(zip(map(tuple, zyx.tolist()), shown["features"]["type"].tolist(), strict=True)) == {
        (1, 2, 3): 2, (4, 5, 6): 1, (7, 8, 9): 2,
    }  # fmt: skip
    table = tmp_path / "shapes.csv"
    table.write_text("name,value\na,1\n")
    assert get_reader(str(table)) is None  # napari's own reader gets it


def test_detect_and_refine_give_the_rows_of_the_library(viewer, qtbot):
    sample = cf.sample("microglia")
    layer = viewer.add_layer(Layer.create(*image_layer(sample.volume)))
    widget, refine = DetectWidget(viewer), RefineWidget(viewer)
    qtbot.addWidget(widget.native)
    qtbot.addWidget(refine.native)
    widget.model.name.value = "detector-microglia"
    widget.box.value = "0 0 0 24 80 80"
    widget.detect()
    assert "cells in microglia" in finished(qtbot, widget)
    box = (0, 0, 0, 24, 80, 80)
    cells = cf.detect(load("detector-microglia", kind="detector"), sample.volume, box=box, show=False)
    shown = points_of(viewer.layers[-1], layer)
    assert len(cells) > 3
    assert np.array_equal(shown.zyx, cells.zyx)
    assert np.array_equal(shown.columns["score"], cells.columns["score"])
    assert np.array_equal(viewer.layers[-1].scale, layer.scale)
    refine.model.name.value = "refiner-microglia"
    refine.refine()
    assert "90 %" in finished(qtbot, refine)
    expected = cf.refine(cf.Refiner.load("refiner-microglia"), sample.volume, cells, show=False)
    refined = points_of(viewer.layers[-1], layer)
    assert np.array_equal(refined.columns["p_cell"], expected.columns["p_cell"])
    assert refined.meta == expected.meta


def test_a_mistake_is_a_line_of_text_and_work_can_be_cancelled(viewer, qtbot):
    widget = DetectWidget(viewer)
    qtbot.addWidget(widget.native)
    widget.detect()
    assert widget.work.text.value == "there is no layer for 'volume'; open one first"
    viewer.add_image(voxels(), name="a", scale=(40, 20, 10))
    widget.detect()
    assert "voxel" in finished(qtbot, widget)  # of another size than the model's
    widget.box.value = "0 0 1"
    widget.detect()
    assert widget.work.text.value == "Box is '0 0 1'; expected 6 numbers"

    def long(steps: int = 10_000) -> None:
        with cf.progress.bar("counting", steps, show=False) as advance:
            for _ in range(steps):
                time.sleep(0.005)
                advance(1)

    widget.work.run("counting", long, lambda _: "done")
    qtbot.waitUntil(lambda: widget.work.bar.value > 2, timeout=10_000)
    widget.work.cancel.changed.emit(True)
    assert finished(qtbot, widget) == "cancelled"


def test_cells_like_the_selected_ones_come_first():
    vectors = np.array([[1, 0], [0, 1], [2, 0.1], [-1, 0], [1, 1]], np.float32)
    rows, similarity = most_similar(vectors, np.array([0]), 3)
    assert rows.tolist() == [0, 2, 4]
    assert similarity[0] == 1
    assert np.isclose(similarity[2], np.sqrt(0.5))


def test_like_cells_become_a_layer(viewer, qtbot):
    sample = cf.sample("microglia")
    layer = viewer.add_layer(Layer.create(*image_layer(sample.volume)))
    some = Points(sample.cells.zyx[:12])
    cells = viewer.add_layer(Layer.create(*points_layer(some, "cells", layer)))
    widget = SimilarWidget(viewer)
    qtbot.addWidget(widget.native)
    widget.search()
    assert "no cell is selected" in widget.work.text.value
    cells.selected_data, widget.count.value = {3}, 4
    widget.search()
    assert finished(qtbot, widget).startswith("4 cells like 1 selected")
    nearest = viewer.layers[-1]
    assert np.array_equal(nearest.data[0], some.zyx[3])
    assert np.all(np.diff(nearest.features["similarity"]) <= 0)


def test_clicks_of_a_review_are_on_disk_at_once_and_go_on(viewer, qtbot, tmp_path):
    layer = viewer.add_image(voxels(), name="a", scale=UM)
    random = np.random.default_rng(0)
    candidates = Points(random.random((30, 3)) * (7, 39, 59), {"score": random.random(30)})
    viewer.add_layer(Layer.create(*points_layer(candidates, "candidates", layer)))

    def opened() -> ReviewWidget:
        widget = ReviewWidget(viewer)
        qtbot.addWidget(widget.native)
        widget.out.value = tmp_path / "labels.csv"
        widget.begin()
        finished(qtbot, widget)
        assert widget.session is not None, widget.work.text.value
        return widget

    widget = opened()
    clicks = tmp_path / "labels.csv.clicks.jsonl"
    first = widget._row
    place = layer.data_to_world(candidates.zyx[first])
    assert np.allclose(viewer.dims.point, place, atol=max(UM))  # the plane is the candidate's
    assert np.allclose(viewer.layers["under review"].data, candidates.zyx[[first]])
    widget.cell.changed.emit(True)
    widget.answer(0)
    assert len(clicks.read_text().splitlines()) == 3  # its head, and two answers
    widget.take_back()
    widget.answer(-1)
    viewer.cursor.position = layer.data_to_world((2, 3, 4))
    widget.add_missed()
    assert "2 of 30 answered, 1 missed" in widget.progress.value
    widget.finish()
    assert viewer.layers[-1].name == "labels"
    labels = Points.read(tmp_path / "labels.csv").columns["label"]
    assert labels[first] == 1
    assert Points.read(tmp_path / "labels_missed.csv").zyx.tolist() == [[2, 3, 4]]
    again = opened()
    assert "2 of 30 answered" in again.progress.value
    again.finish()
