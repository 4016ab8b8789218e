"""Views in Neuroglancer: exported layers hold what was given, the local server answers this machine alone."""

from __future__ import annotations

import http.client
import json
import urllib.request
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.viewing.neuroglancer import client as clients
from canvas_fm.viewing.neuroglancer.colours import STOPS, colouring_of
from canvas_fm.viewing.neuroglancer.export import export_view
from canvas_fm.viewing.neuroglancer.view import open_view

VOXEL_UM = (4.0, 1.8, 1.8)
SHAPE = (40, 70, 90)


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brain")
    voxels = np.arange(np.prod(SHAPE), dtype=np.uint32).reshape(SHAPE)
    for name in ("a", "b"):
        with cf.Volume.create(folder / f"{name}.zarr", SHAPE, voxel_um=VOXEL_UM, dtype="uint32") as writer:
            writer.write((0, 0, 0), voxels)
    random = np.random.default_rng(0)
    zyx = np.floor(random.random((50, 3)) * SHAPE)
    Points(zyx, {"p_cell": random.random(50), "region": random.choice(["CA1", "CA3"], 50)}).write(
        folder / "cells.csv"
    )
    return folder


class FakeClient(clients.Client):
    """In place of the wheel's viewer, so that these tests need no extra."""

    origin = "http://127.0.0.1:1"
    state = None

    def __init__(self, state):
        self.state, self.url = state, f"{self.origin}/v/{len(json.dumps(state))}/"


@pytest.fixture
def with_client(monkeypatch):
    for module in ("view", "server"):
        monkeypatch.setattr(f"canvas_fm.viewing.neuroglancer.{module}.Client", FakeClient)
    monkeypatch.setattr("canvas_fm.viewing.neuroglancer.view.need_neuroglancer", lambda: None)


def test_an_export_holds_layers_points_page_and_state(brain, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["view", str(brain / "a.zarr"), str(brain / "b.zarr"), "--points", str(brain / "cells.csv")]
    assert main([*words, "--labels", str(brain / "b.zarr"), "--export", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["layers"] == ["a", "b", "b-2", "cells"]
    state = json.loads((out / "state.json").read_text())
    kinds = {layer["name"]: layer["type"] for layer in state["layers"]}
    assert kinds == {"a": "image", "b": "image", "b-2": "segmentation", "cells": "annotation"}
    assert state["dimensions"] == {"x": [1.8e-6, "m"], "y": [1.8e-6, "m"], "z": [4e-6, "m"]}
    for layer in state["layers"]:
        assert (out / layer["source"].removeprefix("precomputed://BASE/") / "info").is_file()
    page = (out / "index.html").read_text()
    assert "cells, 50 points, by p_cell" in page
    assert all(stop in page for stop in STOPS)
    assert clients.ONLINE in page
    readme = (out / "README.txt").read_text()
    assert "canvas-fm view out" in readme
    assert "Access-Control-Allow-Origin" in readme
    given = Points.read(brain / "cells.csv")
    back = Points.read(out / "points" / "cells")
    assert np.array_equal(back.zyx, given.zyx)
    assert np.array_equal(back.columns["p_cell"], given.columns["p_cell"].astype(np.float32))
    assert back.columns["region"].tolist() == given.columns["region"].tolist()
    with pytest.raises(CanvasError, match="exists already"):
        export_view([brain / "a.zarr"], out)


def test_without_the_wheel_a_view_names_the_extra(brain, monkeypatch):
    monkeypatch.setattr(clients, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'canvas-fm\[neuroglancer\]'"):  # noqa: SIM117
        with open_view([brain / "a.zarr"]):
            pass


def test_a_view_serves_page_points_and_chunks(brain, with_client):
    volume = cf.Volume.open(brain / "a.zarr")
    with open_view([brain / "a.zarr"], points=[brain / "cells.csv"]) as view:
        assert b"by p_cell" in fetch(view.url)
        state = json.loads(unquote(urlsplit(view.state_url).fragment)[1:])
        assert state["layers"][0]["source"] == f"precomputed://{view.url}volumes/a"
        about = json.loads(fetch(view.url + "viewer.json"))
        assert about == {"url": FakeClient(state).url, "state": state}
        z, y, x = (at - 0.5 for at in state["position"][::-1])
        assert [z, y, x] in Points.read(brain / "cells.csv").zyx.tolist()
        info = json.loads(fetch(view.url + "volumes/a/info"))
        assert info["scales"][0]["size"] == [90, 70, 40]
        chunk = fetch(view.url + "volumes/a/level0/64-90_64-70_0-40")
        expected = volume.read((0, 64, 64), (40, 6, 26))
        assert np.array_equal(np.frombuffer(chunk, "<u4").reshape(expected.shape), expected)
        whole = fetch(view.url + "points/cells/by_id/0.shard")
        assert fetch(view.url + "points/cells/by_id/0.shard", Range="bytes=5-20") == whole[5:21]


def test_a_link_to_a_view_opens_a_viewer_with_its_state(brain, with_client):
    with open_view([brain / "a.zarr"]) as view:
        page, _, fragment = view.state_url.partition("#!")
        assert page == view.url  # the page itself: the client would ignore what its own address says
        shared = json.loads(unquote(fragment)) | {"crossSectionScale": 0.125}
        about = json.loads(fetch(f"{page}viewer.json?state={quote(json.dumps(shared))}"))
        assert about == {"url": FakeClient(shared).url, "state": shared}
        assert json.loads(fetch(f"{page}viewer.json?url={quote(about['url'])}")) == about
        assert json.loads(fetch(f"{page}viewer.json"))["state"] != shared  # the first one is as it was
        for number in range(40):
            fetch(f"{page}viewer.json?state={quote(json.dumps({'layout': 'x' * number}))}")
        first, last = FakeClient(json.loads(unquote(fragment))), FakeClient({"layout": "x" * 39})
        for client in (first, last):
            assert json.loads(fetch(f"{page}viewer.json?url={quote(client.url)}"))["state"] == client.state
        for query in ("state=no", "state=[1]", f"url={quote(about['url'])}"):  # the last one was long ago
            assert status(view, f"{urlsplit(page).path}viewer.json?{query}") == 404


@pytest.mark.parametrize(
    "path",
    ["../../etc/passwd", "volumes/a/level0/0-64_0-64_0-41", "volumes/a/level9/0-1_0-1_0-1",
     "volumes/a/level0/1-65_0-64_0-40", "volumes/a/level0/128-90_0-64_0-40", "nothing"],
)  # fmt: skip
def test_what_is_not_there_is_not_found(brain, with_client, path):
    with open_view([brain / "a.zarr"]) as view:
        assert status(view, urlsplit(view.url).path + path) == 404


def test_only_this_machine_and_whoever_knows_the_address_is_answered(brain, with_client):
    with open_view([brain / "a.zarr"]) as view:
        path = urlsplit(view.url).path
        assert status(view, path) == 200
        assert status(view, "/") == 404
        assert status(view, "/state.json") == 404
        with urllib.request.urlopen(view.url, timeout=20) as reply:
            assert reply.headers["Access-Control-Allow-Origin"] == FakeClient.origin
        assert status(view, path, Host="elsewhere.example:80") == 404
        assert status(view, path + "state.json", Range="bytes=999999-") == 416


def test_an_exported_folder_is_served_as_it_is(brain, tmp_path, with_client):
    export_view([brain / "a.zarr"], tmp_path / "out", encoding="raw")
    with open_view([tmp_path / "out"]) as view:
        assert json.loads(fetch(view.url + "state.json"))["layers"][0]["name"] == "a"
        part = fetch(view.url + "volumes/a/level0/0.shard", Range="bytes=0-15")
        assert part == (tmp_path / "out/volumes/a/level0/0.shard").read_bytes()[:16]
    with pytest.raises(CanvasError, match="give it alone"), open_view([tmp_path / "out", brain / "a.zarr"]):
        pass


def test_colours_follow_the_column():
    points = Points(np.zeros((4, 3)), {"score": np.array([0, 1, 2, 9.0]), "label": np.array([-1, 0, 0, 2])})
    scale = colouring_of(points)
    assert (scale.column, scale.stops) == ("score", STOPS)
    assert "prop_score()" in scale.shader
    assert "slider(min=" in scale.shader
    kinds = colouring_of(points, "label")
    assert [text for text, _ in kinds.entries] == ["-1", "0", "2"]
    assert "prop_label()) - (-1)" in kinds.shader
    assert colouring_of(Points(np.zeros((4, 3)))).column is None
    with pytest.raises(CanvasError, match=r"no column 'size'.*score, label"):
        colouring_of(points, "size")


def fetch(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as reply:
        return reply.read()


def status(view, path, **headers):
    """The status of a request whose path is sent as it is."""
    connection = http.client.HTTPConnection(urlsplit(view.url).netloc, timeout=20)
    connection.request("GET", path, headers=headers)
    return connection.getresponse().status
