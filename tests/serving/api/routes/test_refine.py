"""P(cell) over HTTP: as Python and the command line have it; what a refiner needs is found or asked for."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import Detector, Encoder, save_detector
from canvas_fm.training.finetune.finetune import Tuning
from serving.api.app import create_app
from serving.api.middleware.request_middleware import RequestMiddleware
from serving.client import Client
from serving.core.core import Core
from serving.protocol import npy
from serving.protocol.settings import Limits, ServiceSettings
from tests.heads.conftest import VOXEL_UM, make_encoder, spots
from tests.serving.conftest import NPY, array_of, refused, transport_to

CROP = (4, 8, 8)  # of the encoder made here


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[cf.Volume, Points]]:
    folder = tmp_path_factory.mktemp("brains")
    return [spots(folder / f"{name}.zarr", seed) for seed, name in enumerate("abc")]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return make_encoder(tmp_path_factory.mktemp("encoders") / "cells")


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    folder = tmp_path_factory.mktemp("detectors") / "finder"
    return save_detector(folder, net, voxel_um=VOXEL_UM, threshold=0.5, min_distance_um=6)


@pytest.fixture(scope="module")
def refiners(brains, cells, finder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`plain` by the encoder alone, `corrected` brain by brain, `both` by the detector's features too, `hot`
    by its heat as well.

    `tuned` carries a block of the encoder that was fitted with it.
    """
    folder = tmp_path_factory.mktemp("refiners")
    made = {}
    for name, detector, settings in (
        ("plain", None, {}),
        ("corrected", None, {"correction": "centre"}),
        ("both", finder, {"cut": "mae", "ratio": 0.5}),
        ("hot", finder, {}),
    ):
        volumes, points = [volume for volume, _ in brains[:2]], [points for _, points in brains[:2]]
        heat = name == "hot"
        extractor = Extractor(cells, detector, pool="centre", layer=1, detector_score=heat, device="cpu")
        variant = "mae" if detector is None else "concat"
        refiner = Refiner(variant, C=0.01, **settings)
        trained = label_brains(volumes, points, labels="label")
        fit_labelled(refiner, trained, extractor, folder / name, show=False)
        made[name] = folder / name
    made["tuned"] = folder / "tuned"
    extractor = Extractor(encoder=cells, pool="centre", device="cpu")
    tuning = Tuning(1, least_steps=5, most_steps=5)
    fit_labelled(Refiner("mae", C=0.01), trained, extractor, made["tuned"], tuning=tuning, show=False)
    return made


@pytest.fixture(scope="module")
def more(cells, finder, refiners) -> dict[str, Any]:
    """Settings of the service: its default model has other crops and takes any voxel size."""
    return {
        "ignore_voxel_size": True,
        "models": {"cells": str(cells.path), "finder": str(finder.path)},
        "refiners": {name: str(path) for name, path in refiners.items()},
    }


@pytest.fixture(scope="module")
def service(begin_service, brains, more) -> Iterator:
    with ExitStack() as stack:
        volumes = {volume.name: str(volume.path) for volume, _ in brains}
        yield begin_service(stack, volumes=volumes, more=more)


def asked(points: Points, name: str, **more: Any) -> dict[str, Any]:
    return {"volume": "c", "points_zyx": points.zyx.tolist(), "refiner": name, **more}


@pytest.mark.parametrize("name", ["plain", "corrected", "both", "hot", "tuned"])
def test_python_command_line_and_http_agree(
    service, brains, cells, finder, refiners, tmp_path: Path, name: str
) -> None:
    volume, points = brains[2]
    refiner = Refiner.load(refiners[name])
    detector = finder if name in ("both", "hot") else None
    expected = cf.refine(refiner, volume, points, encoder=cells, detector=detector, device="cpu")
    found = array_of(service.post("/v1/refine", json=asked(points, name, all_candidates=True)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.columns["p_cell"], atol=1e-6)
    points.write(tmp_path / "candidates.csv")
    words = ["refine", "apply", str(refiners[name]), str(volume.path), str(tmp_path / "candidates.csv")]
    words += ["--encoder", str(cells.path), "--out", str(tmp_path / "cells.csv")]
    words += ["--detector", str(finder.path)] if name in ("both", "hot") else []
    assert main(words) == 0
    written = Points.read(tmp_path / "cells.csv").columns["p_cell"]
    np.testing.assert_allclose(found, written, atol=1e-6)
    label = points.columns["label"]
    assert found[label == 1].mean() > found[label == 0].mean() + 0.2


def test_a_crop_of_a_training_volume_is_noted_with_the_count(begin_service, more, tmp_path) -> None:
    volume, points = spots(tmp_path / "crop.zarr", 0)
    (tmp_path / "meta.json").write_text('{"cube": "cubes/a"}', encoding="utf-8")
    with ExitStack() as stack:
        other = begin_service(stack, volumes={"c": str(volume.path)}, more=more)
        reply = other.post("/v1/refine", json=asked(points, "plain"), headers={"Accept": "application/json"})
    note = "the refiner was trained on the volume 'a', of which 'crop' is a crop, and is applied to it here"
    assert note in reply.json()["count"]["notes"]


def test_json_says_the_threshold_and_whose_numbers_these_are(
    service, brains, cells, finder, refiners
) -> None:
    points = brains[2][1]
    reply = service.post("/v1/refine", json=asked(points, "both"), headers={"Accept": "application/json"})
    said, refiner = reply.json(), Refiner.load(refiners["both"])
    assert (said["refiner"], said["threshold"]) == (refiner.sha256_, refiner.threshold_)
    assert (said["encoder"], said["detector"]) == (cells.sha256, finder.sha256)
    assert said["is_cell"] == [p >= refiner.threshold_ for p in said["p_cell"]]
    by_sha256 = array_of(service.post("/v1/refine", json=asked(points, refiner.sha256_)))
    np.testing.assert_allclose(by_sha256, said["p_cell"], atol=1e-6)
    assert service.post("/v1/refine", json=asked(points, "both")).headers["x-threshold"] == repr(
        refiner.threshold_
    )
    info = service.get("/v1/info").json()["refiners"]
    assert list(info) == ["plain", "corrected", "both", "hot", "tuned"]
    assert (info["both"]["pool"], info["both"]["layer"], info["both"]["detector"]) == (
        "centre",
        1,
        finder.sha256,
    )
    assert (info["corrected"]["correction"], info["plain"]["detector"]) == ("centre", None)
    assert [each["name"] for each in service.get("/v1/models").json()["models"]] == ["tiny", "cells"]


def crops_of(volume: cf.Volume, points: Points) -> np.ndarray:
    starts = np.floor(points.zyx + 0.5).astype(int) - np.array(CROP) // 2
    return np.stack([volume.read(tuple(start), CROP) for start in starts])


def test_crops_give_what_their_points_give(service, brains) -> None:
    volume, points = brains[2]
    expected = array_of(service.post("/v1/refine", json=asked(points, "plain")))
    crops = crops_of(volume, points).astype("<u2")
    low, high = volume.window
    reply = service.post(
        f"/v1/refine?refiner=plain&window={low},{high}", content=npy.dump(crops), headers=NPY
    )
    np.testing.assert_allclose(array_of(reply), expected, atol=1e-6)
    encoded = {
        "dtype": "uint16",
        "shape": list(crops.shape),
        "base64": base64.b64encode(crops.tobytes()).decode(),
    }
    body = {"crops": encoded, "window": [low, high], "refiner": "plain"}
    np.testing.assert_allclose(array_of(service.post("/v1/refine", json=body)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "give volume and points_zyx, or crops"),
        ({"points_zyx": [[1, 2, 3]]}, 422, "give volume and points_zyx, or crops"),
        ({"volume": "c"}, 422, "give volume and points_zyx, or crops"),
        ({"volume": "c", "points_zyx": [[1, 2, 3]], "window": [0, 1]}, 422, "window goes with crops"),
        ({"volume": "d", "points_zyx": [[1, 2, 3]]}, 404, "no volume is registered as 'd'"),
        ({"volume": "c", "points_zyx": []}, 422, "at least one row"),
        ({"volume": "c", "points_zyx": [[1, 2, 300]]}, 422, "outside the volume"),
        ({"volume": "c", "points_zyx": [[1, 2]]}, 422, "rows of z, y, x"),
        (
            {"volume": "c", "points_zyx": [[1, 2, 3]], "refiner": "none"},
            404,
            "served: plain, corrected, both",
        ),
        ({"volume": "c", "points_zyx": [[1, 2, 3]], "refiner": None}, 404, "no refiner was named"),
        ({"volume": "c", "points_zyx": [[1, 2, 3]], "background": "b"}, 422, "background"),
        ({"volume": "c", "points_zyx": [[1, 2, 3]], "refiner": "corrected"}, 422, "all_candidates, or send"),
        ({"volume": "c", "points_zyx": [[1, 2, 3]] * 10_001}, 413, "10000 are the most"),
    ],
)
def test_what_cannot_be_meant(service, body: dict, status: int, message: str) -> None:
    refused(service.post("/v1/refine", json={"refiner": "both"} | body), status, message)


def test_crops_alone_are_not_enough_for_a_refiner_with_a_detector(service) -> None:
    crops = npy.dump(np.zeros((1, *CROP), np.float32))
    reply = service.post("/v1/refine?refiner=both", content=crops, headers=NPY)
    refused(reply, 422, "judges by what its detector saw around each point, which a crop does not show")
    reply = service.post("/v1/refine?refiner=corrected", content=crops, headers=NPY)
    refused(reply, 422, "corrects every brain by all of its candidates (centre)")


def test_a_service_without_a_refiner_says_so(client) -> None:
    refused(client.post("/v1/refine", json={}), 404, "no refiner was named; served: none")


def failure_at_start(settings: ServiceSettings) -> str:
    """Why a service of these settings does not become ready."""

    async def whole() -> str:
        failures: list[str] = []
        core = Core(lambda: settings, on_failure=failures.append)
        await core.start()
        while not failures and not core.ready:
            await asyncio.sleep(0.01)
        await core.stop()
        return failures[0]

    return asyncio.run(whole())


def test_a_refiner_whose_model_is_not_there_is_refused_at_the_start(
    model: Path, cells: Encoder, finder: Detector, refiners
) -> None:
    def sentence(**models: str) -> str:
        return failure_at_start(
            ServiceSettings(model=str(model), models=models, refiners={"both": str(refiners["both"])})
        )

    without_detector = sentence(cells=str(cells.path))
    assert (
        "the refiner both cannot be served: this refiner was fitted with the detector finder"
        in without_detector
    )
    assert "as one more MODEL" in without_detector
    assert "with the encoder cells" in sentence(finder=str(finder.path))


def test_a_refiner_that_looks_at_own_scores_is_not_served(model, cells, brains, tmp_path) -> None:
    scored = [Points(points.zyx, points.columns | {"score": np.ones(len(points))}) for _, points in brains]
    trained = label_brains([volume for volume, _ in brains], scored, labels="label")
    extractor = Extractor(encoder=cells, device="cpu")
    refiner = Refiner("mae", C=0.01)
    fit_labelled(refiner, trained, extractor, tmp_path / "refiner", candidate_score=True, show=False)
    own = {"own": str(tmp_path / "refiner")}
    sentence = failure_at_start(
        ServiceSettings(model=str(model), models={"cells": str(cells.path)}, refiners=own)
    )
    assert "the refiner own cannot be served: it uses the candidate score" in sentence
    assert "canvas-fm refine apply" in sentence


def test_an_encoder_that_is_shipped_need_not_be_named(
    begin_service, brains, cells, refiners, monkeypatch
) -> None:
    from canvas_fm.heads.refine.apply import apply as refine_points

    monkeypatch.setattr(refine_points, "shipped", lambda kind: {"cells": cells.path})
    volume, points = brains[2]
    with ExitStack() as stack:
        client = begin_service(
            stack,
            volumes={"c": str(volume.path)},
            more={"ignore_voxel_size": True, "refiners": {"plain": str(refiners["plain"])}},
        )
        found = array_of(client.post("/v1/refine", json=asked(points, "plain")))
        assert [each["name"] for each in client.get("/v1/models").json()["models"]] == ["tiny"]
    expected = cf.refine(Refiner.load(refiners["plain"]), volume, points, encoder=cells, device="cpu")
    np.testing.assert_allclose(found, expected.columns["p_cell"], atol=1e-6)


# --- deadline, and clients that leave


@pytest.fixture
def slow_detector(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """What a detector sees takes a minute, in steps; (it has begun, it has ended)."""
    from canvas_fm.progress import bar

    begun, ended = threading.Event(), threading.Event()

    def seen(self, volume, points_zyx, **_) -> None:
        begun.set()
        try:
            with bar("features", 6000, show=False) as advance:
                for _step in range(6000):
                    time.sleep(0.01)
                    advance()
        finally:
            ended.set()

    monkeypatch.setattr(Extractor, "detector_blocks", seen)
    return begun, ended


def test_a_late_refinement_is_refused_and_ends(begin_service, brains, more, slow_detector) -> None:
    with ExitStack() as stack:
        client = begin_service(stack, volumes={"c": str(brains[2][0].path)}, more=more, deadline_s=0.3)
        reply = client.post("/v1/refine", json=asked(brains[2][1], "both"))
        refused(reply, 504, "no answer within 0.3 s")
        assert slow_detector[1].wait(5)


def test_a_refinement_ends_when_its_client_leaves(brains, model: Path, more, slow_detector) -> None:
    import json

    begun, ended = slow_detector
    volumes = {"c": str(brains[2][0].path)}
    settings = ServiceSettings(model=str(model), volumes=volumes, device="cpu", limits=Limits(), **more)
    body = json.dumps(asked(brains[2][1], "both")).encode()
    sent: list[dict] = []

    async def whole() -> None:
        core = Core(lambda: settings)
        guard = RequestMiddleware(create_app(core), core)
        await core.start()
        while not core.ready:
            await asyncio.sleep(0.01)
        left = False

        async def receive() -> dict:
            nonlocal left
            if not left:
                left = True
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.to_thread(begun.wait, 20)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": "/refine", "headers": headers, "query_string": b""}
        async with asyncio.timeout(20):
            await guard(scope, receive, send)
        await asyncio.to_thread(ended.wait, 5)
        while core.model_pool.pending:
            await asyncio.sleep(0.01)
        await core.stop()

    asyncio.run(whole())
    assert ended.is_set()
    assert sent[0]["status"] == 400  # nobody reads it


def test_a_name_that_is_none_is_refused_before_anything_starts(model: Path, refiners) -> None:
    from serving.launch.serve import serve

    with pytest.raises(CanvasError, match="the refiner name 'a b' may hold letters"):
        serve(model, refiners={"a b": refiners["plain"]}, port=0)
    with pytest.raises(CanvasError, match="no model at"):
        serve(model, refiners={"plain": "nothing"}, port=0)


def test_the_clients_give_what_the_route_gives(service, brains) -> None:
    volume, points = brains[2]
    expected = array_of(service.post("/v1/refine", json=asked(points, "plain")))
    client = Client("http://testserver", transport=transport_to(service))
    in_parts = client.refine("c", points.zyx, refiner="plain", per_request=30)
    np.testing.assert_allclose(in_parts, expected, atol=1e-6)
    crops = client.refine_crops(crops_of(volume, points), volume.window, refiner="plain", per_request=30)
    np.testing.assert_allclose(crops, expected, atol=1e-6)
    whole = array_of(service.post("/v1/refine", json=asked(points, "corrected", all_candidates=True)))
    found = client.refine("c", points.zyx, refiner="corrected", all_candidates=True, per_request=30)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    with pytest.raises(CanvasError, match="answered 422: the refiner corrected corrects every brain"):
        client.refine("c", points.zyx, refiner="corrected")
