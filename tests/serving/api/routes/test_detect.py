"""Detectors over HTTP, alone and beside an encoder: the cells of `canvas_fm.detect`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

import canvas_fm as cf
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.heads.refine.counts import measured_count
from canvas_fm.heads.refine.counts.detection_statistics import DetectionStats
from canvas_fm.heads.refine.counts.measured_count import NOT_REFINED, CountRecord, HeldOut, PartError
from canvas_fm.heads.refine.counts.refined_count import with_count
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import Detector, load, save_detector
from serving.client import Client
from tests.serving.conftest import NPY, VOXEL_UM, array_of, post, refused, transport_to
from tests.serving.core.jobs.job_helpers import submit, until

BOX = [2, 5, 5, 20, 55, 45]
BODY = {"volume": "cube", "box": BOX, "threshold": 0.3}


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """A detector with random weights; its own threshold finds nothing, a lower one many."""
    torch.manual_seed(2)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    with torch.no_grad():
        net.head.weight.copy_(torch.randn_like(net.head.weight))
        net.head.bias.zero_()
    folder = tmp_path_factory.mktemp("detectors") / "finder"
    return save_detector(folder, net, voxel_um=VOXEL_UM, threshold=0.9, min_distance_um=6)


@pytest.fixture(scope="module")
def alone(begin_service: Callable, finder: Detector, volume_path: Path, model: Path) -> Iterator:
    """A service of a detector alone, which may be given more."""
    with ExitStack() as stack:
        yield begin_service(stack, more={"model": str(finder.path), "roots": [str(model.parent)]})


def expected(finder: Detector, volume_path: Path) -> Points:
    found = cf.detect(finder, cf.Volume.open(volume_path), box=BOX, threshold=0.3, device="cpu", show=False)
    assert len(found) > 3
    return found


def test_the_count_is_that_of_a_detection_file(
    alone, finder: Detector, volume_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In JSON, in the headers and by the client; none of a detector or threshold that was not measured."""
    brains = dict.fromkeys("12", HeldOut(100, 150, DetectionStats(0.5, 0.5, 1.0)))
    record = CountRecord(
        made_by=finder.sha256, threshold=0.3, refiners=(NOT_REFINED,), parts=PartError(1.0, 0.0),
        brains=brains, others={}, parts_of_others=PartError(1.0, 0.0),
    )  # fmt: skip
    monkeypatch.setattr(measured_count, "shipped_counts", lambda: (record,))
    meta = with_count(expected(finder, volume_path)).meta
    reply = alone.post("/v1/detect", json=BODY, headers={"Accept": "application/json"})
    count = reply.json()["count"]
    assert f"{count['expected_cells']:.1f}" == meta["expected_cells"]
    assert "{:.1f} {:.1f}".format(*count["interval_90"]) == meta["expected_cells_90"]
    assert count["count_of"] == meta["count_of"] == reply.headers["X-Count-Of"]
    with Client("http://testserver", transport=transport_to(alone), retry_s=0) as client:
        found = client.detect("cube", box=BOX, threshold=0.3).meta
    assert {
        key: found[key] for key in ("expected_cells", "expected_cells_90", "count_of")
    }.items() <= meta.items()
    other = alone.post("/v1/detect", json=BODY | {"threshold": 0.4}, headers={"Accept": "application/json"})
    assert other.json()["count"] is None
    assert "X-Count-Of" not in other.headers


def test_cells_are_those_of_python(alone, finder: Detector, volume_path: Path) -> None:
    cells = expected(finder, volume_path)
    with Client("http://testserver", transport=transport_to(alone), retry_s=0) as client:
        found = client.detect("cube", box=BOX, threshold=0.3)
        assert len(client.detect("cube", box=BOX)) < len(found)
    np.testing.assert_array_equal(found.zyx, cells.zyx)
    np.testing.assert_array_equal(found.columns["score"], cells.columns["score"])
    assert found.meta == {"detector_sha256": finder.sha256, "threshold": "0.3"}
    table = array_of(alone.post("/v1/detect", json=BODY | {"detector": finder.sha256}))
    np.testing.assert_array_equal(table[:, :3], cells.zyx)
    text = alone.post("/v1/detect", json=BODY, headers={"Accept": "text/csv"}).text
    assert text.splitlines()[0] == "z,y,x,score"
    np.testing.assert_array_equal(np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1)[:, :3], cells.zyx)


@pytest.mark.parametrize(
    ("change", "status", "part"),
    [
        ({"volume": "brain"}, 404, "registered: cube"),
        ({"detector": "other"}, 404, "no detector is served as 'other'; served: finder"),
        ({"threshold": 1.5}, 422, "threshold is 1.5"),
        ({"threshold": "0.5"}, 422, "threshold: Input should be a valid number"),
        ({"min_distance_um": 0}, 422, "min_distance_um: Input should be greater than 0"),
        ({"box": [0, 0, 0, 500, 9, 9]}, 422, "500"),
        ({"box": True}, 422, "box: Input should be a valid array"),
        ({"box": {"z": 1}}, 422, "box"),
        ({"background": "cube"}, 422, "background"),
        ({"tile_zyx": [9000, 9000, 9000]}, 422, "tile_zyx: Extra inputs"),
        ({"device": "cuda"}, 422, "device: Extra inputs"),
    ],
)
def test_what_cannot_be_meant_is_refused(alone, change: dict, status: int, part: str) -> None:
    refused(alone.post("/v1/detect", json=BODY | change), status, part)


def test_a_box_is_limited(start: Callable, finder: Detector) -> None:
    service = start(more={"model": str(finder.path)}, max_detect_mvoxels=0.01)
    refused(service.post("/v1/detect", json=BODY), 413, "0.036 million voxels; 0.01 are the most")


def test_without_an_encoder_volumes_and_crops_answer(alone, finder: Detector, volume_path: Path) -> None:
    said = alone.get("/v1/info").json()
    assert "crop_zyx" not in said
    assert said["models"] == []
    assert said["detectors"]["finder"]["sha256"] == finder.sha256
    volume = cf.Volume.open(volume_path)
    assert said["volumes"]["cube"]["shape_zyx"] == list(volume.shape_zyx)
    assert [each["name"] for each in alone.get("/v1/models").json()["detectors"]] == ["finder"]
    plane = array_of(alone.get("/v1/crop?volume=cube&z=9&y=20&x=20&size=1,16,16"))
    np.testing.assert_array_equal(plane, volume.window.apply(volume.read((9, 12, 12), (1, 16, 16))))
    refused(alone.get("/v1/crop?volume=cube&z=9&y=20&x=20"), 422, "give size=Z,Y,X")


def test_what_needs_an_encoder_says_so(alone, crops: np.ndarray) -> None:
    points = {"volume": "cube", "points_zyx": [[9, 20, 20]]}
    for reply in (
        post(alone, crops),
        alone.post("/v1/embed/points", json=points),
        alone.post("/v1/reconstruct?window=0,1", content=b"", headers=NPY),
        alone.post("/embed_json", json={"crops": crops[:1].tolist()}),
    ):
        refused(reply, 404, "no encoder is served here, only detectors")
    refused(alone.post("/v1/embed/points", json=points | {"model": "finder"}), 404, "'finder' is a detector")
    refused(alone.post("/v1/refine", json=points), 404, "no refiner was named; served: none")


def test_an_encoder_may_come_later_and_a_detector_too(start: Callable, finder, model, crops) -> None:
    roots = [str(model.parent), str(finder.path.parent)]
    service = start(more={"model": str(finder.path), "roots": roots})
    assert service.post("/v1/models", json={"name": "late", "path": model.name}).status_code == 201
    assert array_of(post(service, crops, "?model=late")).shape == (5, 48)
    added = service.post("/v1/models", json={"name": "again", "path": "finder"})
    assert (added.status_code, added.json()["channels"]) == (201, 1)
    refused(service.post("/v1/detect", json=BODY), 404, "no detector was named; served: finder, again")
    assert service.post("/v1/detect", json=BODY | {"detector": "again"}).status_code == 200
    refused(service.post("/v1/models", json={"name": "finder", "path": model.name}), 409, "'finder'")


def test_the_first_encoder_is_the_default_wherever_it_stands(
    start: Callable, finder, model, volume_path
) -> None:
    service = start(more={"model": str(finder.path), "models": {"mine": str(model)}})
    said = service.get("/v1/info").json()
    assert (said["name"], said["sha256"]) == ("mine", load(model).sha256)
    assert list(said["detectors"]) == ["finder"]
    assert len(array_of(service.post("/v1/detect", json=BODY))) == len(expected(finder, volume_path))


def test_the_client_refuses_what_no_detector_takes(alone) -> None:
    with Client("http://testserver", transport=transport_to(alone), retry_s=0) as client:
        with pytest.raises(CanvasError, match="there is no option treshold; did you mean threshold"):
            client.detect("cube", treshold=0.2)
        with pytest.raises(CanvasError, match="min_distance_um is -1"):
            client.detect("cube", min_distance_um=-1)


# --- as a job


def test_a_job_finds_the_cells_of_python_and_its_table_says_by_what(
    begin_service, finder: Detector, volume_path: Path, tmp_path: Path
) -> None:
    cells = expected(finder, volume_path)
    with ExitStack() as stack:
        service = begin_service(stack, more={"model": str(finder.path), "jobs": str(tmp_path / "jobs")})
        job = submit(service, kind="detect", roi=BOX, threshold=0.3)
        assert (job["kind"], job["detector"], job["refiner"]) == ("detect", finder.sha256, None)
        said = until(service, job, "done", "failed")
        assert (said["state"], said["error"]) == ("done", None)
        assert said["done"] == said["total"] >= 1
        path = tmp_path / "cells.csv"
        path.write_bytes(service.get(said["result"], headers={"Accept": "text/csv"}).content)
        about = service.get(said["result"], headers={"Accept": "application/json"}).json()
    found = Points.read(path)
    np.testing.assert_array_equal(found.zyx, cells.zyx)
    np.testing.assert_allclose(found.columns["score"], cells.columns["score"], rtol=1e-6)
    assert finder.sha256 in str(about)


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"points_zyx": [[1, 1, 1]]}, 422, "points_zyx means nothing to a job of kind detect"),
        ({"roi": [0, 0, 0, 5, 5]}, 422, "roi"),
        ({"roi": [5, 5, 5, 5, 9, 9]}, 422, "have to rise"),
        ({"detector": "none"}, 404, "no detector is served as 'none'"),
        ({"kind": "embed", "roi": BOX, "points_zyx": [[1, 1, 1]]}, 422, "roi means nothing"),
        ({"volume": "none"}, 404, "no volume is registered"),
    ],
)
def test_detections_that_cannot_be_are_refused(with_jobs, change, status, sentence) -> None:
    refused(with_jobs.post("/v1/jobs", json={"kind": "detect", "volume": "cube"} | change), status, sentence)


@pytest.fixture(scope="module")
def with_jobs(
    begin_service: Callable, finder: Detector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("jobs")
        yield begin_service(stack, more={"model": str(finder.path), "jobs": str(folder)})
