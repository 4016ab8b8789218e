"""The routes for eyes, through HTTP: maps, columns, cells with thumbnails, crops; and the page's files."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import canvas_fm as cf
from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.points.points import Points
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.search.projection import column, embedding_map
from canvas_fm.models.load_model import Encoder
from serving.api.middleware.auth import read_keys
from serving.protocol import npy
from tests.serving.conftest import CROP, NPY, SHAPE, VOXEL_UM, array_of, refused

UI = Path(__file__).parents[4] / "serving" / "ui"


def pixels(text: str | bytes) -> np.ndarray:
    data = base64.b64decode(text) if isinstance(text, str) else text
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def index(encoder: Encoder, volume_path: Path, tmp_path_factory: pytest.TempPathFactory) -> cf.Index:
    """Sixty cells of the served volume `cube`, and ten of another of the same name that is not served."""
    folder = tmp_path_factory.mktemp("index")
    rng = np.random.default_rng(0)
    other = folder / "other" / "cube.zarr"
    with cf.Volume.create(other, SHAPE, voxel_um=VOXEL_UM, chunk_zyx=(8, 16, 16)) as writer:
        writer.write((0, 0, 0), rng.integers(0, 100, SHAPE).astype(np.uint16))
    made = []
    for name, path, n in (("served", volume_path, 60), ("other", other, 10)):
        columns = {"score": np.linspace(0, 1, n), "region": np.array(["CTX", "HPF"])[np.arange(n) % 2]}
        points = Points(rng.random((n, 3)) * SHAPE - 0.5, columns)
        made.append(
            embed_to_store(encoder, cf.Volume.open(path), points, folder / f"{name}.emb.zarr", device="cpu")
        )
    return cf.Index.build(made, folder / "cells.index")


@pytest.fixture(scope="module")
def service(begin_service, index: cf.Index) -> Iterator:
    with ExitStack() as stack:
        yield begin_service(stack, more={"indexes": {"cells": str(index.path)}})


# --- maps


def test_a_map_is_that_of_the_library(service, index: cf.Index) -> None:
    expected = embedding_map(index)
    said = service.get("/v1/map").json()
    assert (said["cells"], said["shown"], said["method"], said["encoder"]) == (
        70,
        70,
        "pca",
        index.encoder_sha256,
    )
    assert said["share"] == pytest.approx(expected.share)
    assert said["columns"]["region"] == {"kind": "text", "words": ["CTX", "HPF"]}
    assert said["columns"]["score"] == {"kind": "number", "words": None}
    np.testing.assert_array_equal(array_of(service.get("/v1/map/points?index=cells&method=pca")), expected.xy)
    for name in said["columns"]:
        found = array_of(service.get(f"/v1/map/column?name={name}"))
        assert found.dtype in (np.float32, np.float64, np.int32)
        np.testing.assert_array_equal(found, column(index, name, expected.rows).values)


def test_of_a_larger_index_some_are_shown(start, index: cf.Index) -> None:
    client = start(more={"indexes": {"cells": str(index.path)}}, max_map_cells=20)
    assert client.get("/v1/map").json()["shown"] == 20
    rows = array_of(client.get("/v1/map/column?name=row"))
    np.testing.assert_array_equal(rows, embedding_map(index, most=20).rows)
    assert array_of(client.get("/v1/map/points")).shape == (20, 2)


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("map?index=none", 404, "no index is served as 'none'; served: cells"),
        ("map?method=tsne", 422, "method is 'tsne'; expected 'pca' or 'umap'"),
        ("map/points?size=3", 422, "the parameter 'size' is unknown here"),
        ("map/column", 422, "name is missing; give a column's name"),
        ("map/column?name=colour", 404, "no row has a column 'colour'"),
        ("crop?volume=cube&z=1&y=1", 422, "x is missing; give z, y and x in voxels of level 0"),
        ("crop?volume=cube&z=1&y=1&x=nan", 422, "x is 'nan'"),
        ("crop?volume=cube&z=99&y=1&x=1", 422, "outside"),
        ("crop?volume=other&z=1&y=1&x=1", 404, "no volume is registered as 'other'"),
        ("crop?z=1&y=1&x=1", 422, "give volume=NAME"),
        ("crop?volume=cube&z=1&y=1&x=1&size=8,8", 422, "size is '8,8'; it has to be Z,Y,X"),
        ("crop?volume=cube&z=1&y=1&x=1&size=0,8,8", 413, "a crop has 1 to"),
        ("crop?volume=cube&z=1&y=1&x=1&size=999,9999,9999", 413, "a crop has 1 to"),
    ],
)
def test_what_cannot_be_meant_is_refused(service, path: str, status: int, message: str) -> None:
    refused(service.get(f"/v1/{path}"), status, message)


# --- cells and their pictures


def test_cells_by_row_and_by_id_with_their_volume_and_thumbnail(
    service, index: cf.Index, volume_path: Path
) -> None:
    rows = [59, 0, 65]
    said = service.post("/v1/cells", json={"rows": rows, "thumbnails": True}).json()["cells"]
    told = index.describe(rows)
    drawn = [cell.pop("thumbnail") for cell in said]
    assert [cell.pop("volume") for cell in said] == [
        "cube",
        "cube",
        None,
    ]  # the name alone does not make it the same
    assert said == told
    assert drawn[2] is None
    volume = cf.Volume.open(volume_path)
    points = np.array([[cell["z"], cell["y"], cell["x"]] for cell in told[:2]])
    crops = volume.window.apply(CropReader(volume, CROP).read_points(points))
    for picture, crop in zip(drawn, crops, strict=False):
        np.testing.assert_allclose(pixels(picture), 255 * crop[3:5].max(axis=0), atol=0.51)
    by_id = service.post("/v1/cells", json={"ids": ["#59", "#0"]}).json()["cells"]
    assert [cell["row"] for cell in by_id] == [59, 0]
    assert "thumbnail" not in by_id[0]


def test_cells_as_csv_are_points(service, index: cf.Index, tmp_path: Path) -> None:
    reply = service.post("/v1/cells", json={"rows": [3, 64]}, headers={"Accept": "text/csv"})
    assert reply.headers["content-type"].startswith("text/csv")
    (tmp_path / "cells.csv").write_text(reply.text)
    points = Points.read(tmp_path / "cells.csv")
    told = index.describe([3, 64])
    np.testing.assert_array_equal(points.zyx, [[cell[axis] for axis in "zyx"] for cell in told])
    for name in ("id", "row", "region", "score", "brain"):
        assert points.columns[name].tolist() == [cell[name] for cell in told]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "give one of rows and ids"),
        ({"rows": [1], "ids": [1]}, 422, "give one of rows and ids"),
        ({"rows": []}, 422, "0 cells in one request"),
        ({"rows": [70]}, 422, "rows go from 0 to 69"),
        ({"rows": [-1]}, 422, "rows go from 0 to 69"),
        ({"rows": [10**30]}, 422, "rows go from 0 to 69"),
        ({"rows": [1.5]}, 422, "rows.0"),
        ({"rows": [0] * 1001}, 413, "1001 cells in one request; give 1 to 1000"),
        ({"rows": [0] * 513, "thumbnails": True}, 413, "give 1 to 512"),
        ({"ids": ["nobody"]}, 422, "no cell with the id 'nobody'"),
    ],
)
def test_cells_that_are_not_there_are_refused(service, body: dict, status: int, message: str) -> None:
    refused(service.post("/v1/cells", json=body), status, message)


def test_hits_carry_thumbnails_on_request(service, index: cf.Index) -> None:
    plain = service.post("/v1/search", json={"ids": ["#5"], "k": 4}).json()["hits"]
    drawn = service.post("/v1/search", json={"ids": ["#5"], "k": 4, "thumbnails": True}).json()["hits"]
    cells = service.post("/v1/cells", json={"rows": [hit["row"] for hit in plain], "thumbnails": True}).json()
    assert drawn == [
        {**hit, "volume": cell["volume"], "thumbnail": cell["thumbnail"]}
        for hit, cell in zip(plain, cells["cells"], strict=True)
    ]
    crop = npy.dump(array_of(service.get("/v1/crop?volume=cube&z=9&y=20&x=20"))[None])
    by_crop = service.post("/v1/search?k=3&thumbnails=true", content=crop, headers=NPY).json()["hits"]
    assert all("thumbnail" in hit for hit in by_crop)
    many = {"vectors": [[0.1] * index.dim] * 200, "k": 3, "thumbnails": True}
    refused(service.post("/v1/search", json=many), 413, "600 thumbnails in one reply; 512 are the most")


def test_a_damaged_volume_gives_no_thumbnails_and_the_search_its_hits(
    start, volume_path: Path, index, tmp_path
) -> None:
    copy = tmp_path / "cube.zarr"
    shutil.copytree(volume_path, copy)
    client = start(volumes={"cube": str(copy)}, more={"indexes": {"cells": str(index.path)}})
    for chunk in copy.rglob("c/*/*/*"):
        if chunk.is_file():
            chunk.write_bytes(b"x" * chunk.stat().st_size)
    hits = client.post("/v1/search", json={"ids": ["#5"], "k": 4, "thumbnails": True}).json()["hits"]
    assert [hit["thumbnail"] for hit in hits] == [None] * 4
    reply = client.get("/v1/crop?volume=cube&z=9&y=20&x=20")
    refused(reply, 500, "the volume 'cube' cannot be read")
    assert str(tmp_path) not in reply.text


# --- crops


def test_a_crop_is_what_the_model_sees_of_that_point(service) -> None:
    point = [9.4, 20.5, 49.0]
    crop = array_of(service.get("/v1/crop?volume=cube&z=9.4&y=20.5&x=49"))
    assert crop.shape == CROP
    assert crop.dtype == np.float32
    by_crop = array_of(service.post("/v1/embed", content=npy.dump(crop[None]), headers=NPY))
    by_point = array_of(service.post("/v1/embed/points", json={"volume": "cube", "points_zyx": [point]}))
    np.testing.assert_allclose(by_crop, by_point, rtol=1e-5, atol=1e-6)


def test_a_box_of_another_size_and_the_strip_as_png(service, volume_path: Path) -> None:
    volume = cf.Volume.open(volume_path)
    box = array_of(service.get("/v1/crop?volume=cube&z=9&y=20&x=3&size=2,31,12"))
    np.testing.assert_array_equal(box, volume.window.apply(volume.read((8, 5, -3), (2, 31, 12))))
    reply = service.get("/v1/crop?volume=cube&z=9&y=20&x=3&size=2,31,12", headers={"Accept": "image/png"})
    assert reply.headers["content-type"] == "image/png"
    picture = pixels(reply.content)
    assert picture.shape == (31, 25)
    np.testing.assert_allclose(picture[:, :12], 255 * box[0], atol=0.51)
    np.testing.assert_allclose(picture[:, 13:], 255 * box[1], atol=0.51)
    assert (picture[:, 12] == 255).all()


# --- the page's files


def test_the_page_is_served_with_a_policy_that_lets_nothing_else_run(service) -> None:
    for path in (
        "/ui/",
        "/ui/index.html",
        "/ui/app.js",
        "/ui/views/crop/crop.js",
        "/ui/style.css",
        "/ui/icon.svg",
    ):
        reply = service.get(path)
        assert reply.status_code == 200
        policy = dict(
            part.strip().partition(" ")[::2] for part in reply.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert reply.headers["x-content-type-options"] == "nosniff"
        again = service.get(path, headers={"If-None-Match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    kinds = {
        path: service.get(path).headers["content-type"] for path in ("/ui/", "/ui/app.js", "/ui/style.css")
    }
    assert [kind.partition(";")[0] for kind in kinds.values()] == ["text/html", "text/javascript", "text/css"]


def test_the_root_leads_to_the_page_and_docs_to_the_routes(service) -> None:
    for path, target in (("/", "ui/"), ("/ui", "ui/"), ("/docs", "ui/docs.html")):
        reply = service.get(path, follow_redirects=False)
        assert (reply.status_code, reply.headers["location"]) == (
            307,
            target,
        )  # relative: below a proxy's path too
        assert service.get(path).status_code == 200
    assert service.get("/static_content/swagger-ui-bundle.js").status_code == 200


@pytest.mark.parametrize(
    "path", ["/ui/none.js", "/ui/../v1/info", "/ui/..%2fpage.py", "/ui/%2e%2e/page.py", "/ui//etc/passwd"]
)
def test_nothing_but_the_page_is_found_there(service, path: str) -> None:
    assert service.get(path).status_code in (200, 404)
    if path != "/ui/../v1/info":  # which the client itself shortens
        refused(service.get(path), 404, "the page has no file")
    assert service.post("/ui/", content=b"x").status_code == 405


def test_the_page_needs_no_key_and_what_it_shows_does(begin_service, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("lab 0123456789abcdef0123\n")
    file.chmod(0o600)
    with ExitStack() as stack:
        headers = {"Authorization": ""}
        client = begin_service(
            stack, more={"keys": read_keys(file)}, headers=headers, rate_per_s=0.001, burst=8
        )
        for _ in range(10):  # nor are its files counted against the rate of an address
            assert client.get("/ui/").status_code == 200
        assert client.get("/ui/app.js").status_code == client.get("/").status_code == 200
        for path in ("/v1/info", "/v1/map", "/v1/crop", "/ui2/", "/uix", "/v1/tile", "/v1/pyramid"):
            assert client.get(path).status_code == 401
        assert client.post("/v1/cells", json={"rows": [0]}).status_code == 401


def test_no_file_of_the_page_names_another_place() -> None:
    for path in filter(Path.is_file, UI.rglob("*")):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|wss?://|//[a-z]+\.[a-z]", text), path
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        ), path
        assert not re.search(r"\son[a-z]+=|<style|style=|javascript:", text), path


# --- colours: for the colour-blind, and against the page

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}
LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
OKLAB = [
    [0.2104542553, 0.793617785, -0.0040720468],
    [1.9779984951, -2.428592205, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.808675766],
]


def linear(colours: list[str]) -> np.ndarray:
    rgb = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    first, second = linear([one, other]) @ [0.2126, 0.7152, 0.0722]
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


def tokens(theme: str) -> dict[str, str]:
    """The colours of the style sheet by name; what the dark theme does not change is the light one's."""
    blocks = re.findall(r":root \{(.*?)\}", (UI / "style.css").read_text(), re.S)
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in blocks[:2])
    return light if theme == "light" else light | dark


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_colours_of_groups_are_told_apart_by_everybody(theme: str) -> None:
    text = (UI / "shared" / "colours.js").read_text()
    colours = re.findall(r"#[0-9a-f]{6}", re.search(rf"{theme}: \[(.*?)\]", text)[1])
    assert len(colours) == 8
    for sight, matrix in SIGHT.items():
        seen = np.clip(linear(colours) @ np.transpose(matrix), 0, 1)
        lab = np.cbrt(seen @ np.transpose(LMS)) @ np.transpose(OKLAB)
        apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + np.eye(8)
        assert apart.min() > 0.09, (sight, apart.min())  # 0.02 is about what can just be seen
    assert min(contrast(colour, tokens(theme)["card"]) for colour in colours) >= 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_what_lies_behind_it(theme: str) -> None:
    held = tokens(theme)
    for ink in ("ink", "muted", "accent", "bad"):
        for behind in ("page", "card", "soft"):
            assert contrast(held[ink], held[behind]) >= 4.5, (ink, behind)
    assert contrast(held["on-accent"], held["accent"]) >= 4.5
    assert contrast(held["on-accent"], held["unlike"]) >= 4.5
    for behind in ("field", "card"):  # the border of a control
        assert contrast(held["edge"], held[behind]) >= 3
