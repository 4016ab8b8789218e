"""The review's routes: behind keys, exact voxels, and nothing that is no answer gets into the click log."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.heads.review.session import ReviewSession
from serving.api.review.crops import view_zyx
from serving.api.review.routes import create_review

SHAPE, KEYS = (20, 60, 64), {"anna": "key-of-anna-0123456789", "ben": "key-of-ben-0123456789"}


@pytest.fixture
def volume() -> Volume:
    """Voxels whose value is their own index."""
    voxels = np.arange(np.prod(SHAPE), dtype=np.uint32).reshape(SHAPE) % 65521
    return Volume.from_array(voxels.astype(np.uint16), voxel_um=(4.0, 1.8, 1.8), name="index")


@pytest.fixture
def session(tmp_path: Path):
    zyx = np.random.default_rng(0).integers(0, 20, (50, 3)) * (1.0, 2.9, 3.1)
    made = ReviewSession(
        Points(zyx, {"score": np.linspace(0, 1, 50)}), tmp_path / "labels.csv", tuple(KEYS), order="random"
    )
    yield made
    made.close()


@pytest.fixture
def clients(session: ReviewSession, volume: Volume):
    """A client of each annotator."""
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    app = create_review(session, volume, digests)
    return {
        name: TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {key}"})
        for name, key in (KEYS | {"eve": "a-key-that-was-guessed"}).items()
    }


@pytest.fixture
def anna(clients) -> TestClient:
    return clients["anna"]


def click_log(session: ReviewSession) -> list[dict]:
    return [json.loads(line) for line in session.click_log.path.read_text().splitlines()[1:]]


def test_who_clicked_is_who_has_the_key(clients, session: ReviewSession):
    for name in ("anna", "ben"):
        queue = clients[name].get("/v1/review/queue").json()["queue"]
        body = {"id": f"of-{name}", "rows": [queue[0]["row"]], "label": 1}
        assert clients[name].post("/v1/review/answers", json=body).status_code == 200
    assert [event["by"] for event in click_log(session)] == ["anna", "ben"]


@pytest.mark.parametrize(
    "path", ["", "queue", "batch?label=1&count=3", "crops?rows=1", "plane?z=1&y=2&x=3", "near?z=1&y=2&x=3"]
)
def test_without_a_key_nothing_is_read(clients, path: str):
    reply = clients["eve"].get(f"/v1/review/{path}")
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("path", ["answers", "back", "missed"])
def test_without_a_key_nothing_is_written(clients, session: ReviewSession, path: str):
    body = {"id": "x", "rows": [1], "label": 1, "zyx": [1, 2, 3]}
    assert clients["eve"].post(f"/v1/review/{path}", json=body).status_code == 401
    assert click_log(session) == []


def test_the_page_itself_is_open_and_locked_down(clients):
    reply = clients["eve"].get("/ui/review/review.html")
    assert reply.status_code == 200
    assert "default-src 'none'; script-src 'self'" in reply.headers["content-security-policy"]
    assert clients["anna"].get("/ui/review/%2e%2e/%2e%2e/app.py").status_code == 404
    assert clients["eve"].get("/ui/app.py").status_code == 404


def test_crops_are_the_volumes_own_voxels(anna: TestClient, session: ReviewSession, volume: Volume):
    reply = anna.get("/v1/review/crops?rows=7,3")
    crops = np.load(io.BytesIO(reply.content))
    size = view_zyx(volume)
    assert crops.shape == (2, *size)
    assert crops.dtype == np.uint16
    start = np.floor(session.candidates.zyx[3] + 0.5).astype(int) - np.array(size) // 2
    assert np.array_equal(crops[1], volume.read(tuple(int(n) for n in start), size))


def test_a_plane_has_its_place_in_the_middle(anna: TestClient, volume: Volume):
    plane = np.load(io.BytesIO(anna.get("/v1/review/plane?z=4&y=30&x=31").content))
    middle = plane.shape[1] // 2
    assert plane[0, middle, middle] == volume.read((4, 30, 31), (1, 1, 1)).item()


def test_a_grid_records_the_wrong_ones_with_the_other_label(anna: TestClient, session: ReviewSession):
    rows = [one["row"] for one in anna.get("/v1/review/batch?label=1&count=5").json()["rows"]]
    body = {"id": "g", "rows": rows, "label": 1, "wrong": rows[1:3]}
    assert anna.post("/v1/review/answers", json=body).json()["progress"]["mine"] == 5
    labels = session.clicks.labels["anna"]
    assert [labels[row] for row in rows] == [1, 0, 0, 1, 1]


def test_back_shows_the_candidate_again(anna: TestClient, session: ReviewSession):
    row = anna.get("/v1/review/queue").json()["queue"][0]["row"]
    anna.post("/v1/review/answers", json={"id": "1", "rows": [row], "label": 0})
    found = anna.post("/v1/review/back", json={"id": "2"}).json()
    assert found["undone"] == [row]
    assert found["queue"][0]["row"] == row
    assert session.clicks.labels["anna"] == {}


def test_a_missed_cell_is_added_seen_and_removed(anna: TestClient, clients, session: ReviewSession):
    assert anna.post("/v1/review/missed", json={"id": "m", "zyx": [4, 30, 31]}).json() == {"missed": 1}
    near = clients["ben"].get("/v1/review/near?z=5&y=33&x=30").json()
    assert near["missed"] == [{"id": "m", "zyx": [4, 30, 31], "by": "anna"}]
    assert anna.post("/v1/review/missed", json={"id": "n", "remove": "m"}).json() == {"missed": 0}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("answers", {"id": "a", "rows": [50], "label": 1}, 422),
        ("answers", {"id": "a", "rows": [-1], "label": 1}, 422),
        ("answers", {"id": "a", "rows": [], "label": 1}, 422),
        ("answers", {"id": "a", "rows": [1], "label": 7}, 422),
        ("answers", {"id": "a", "rows": [1], "label": True}, 422),
        ("answers", {"id": "a", "rows": ["1"], "label": 1}, 422),
        ("answers", {"id": "a\n", "rows": [1], "label": 1}, 422),
        ("answers", {"id": "a" * 65, "rows": [1], "label": 1}, 422),
        ("answers", {"id": "a", "rows": list(range(50)) * 2, "label": 1}, 422),
        ("answers", {"id": "a", "rows": [1], "label": 1, "by": "ben"}, 422),
        ("answers", {"id": "a", "rows": [1], "label": 1, "wrong": [2]}, 422),
        ("answers?order=doubt", {"id": "a", "rows": [1], "label": 1}, 422),
        ("missed", {"id": "a", "zyx": [1, 2]}, 422),
        ("missed", {"id": "a", "zyx": [1, 2, 64]}, 422),
        ("missed", {"id": "a", "zyx": [1, 2, 1e300]}, 422),
        ("missed", {"id": "a"}, 422),
        ("back", {}, 422),
        ("back", [1], 422),
    ],
)
def test_what_is_no_answer_is_refused_and_not_kept(
    anna, session: ReviewSession, path: str, body, status: int
):
    reply = anna.post(f"/v1/review/{path}", json=body)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]
    assert click_log(session) == []


def test_a_body_that_is_no_json_or_too_large_is_refused(anna: TestClient, session: ReviewSession):
    json_type = {"Content-Type": "application/json"}
    assert anna.post("/v1/review/answers", content=b"{", headers=json_type).status_code == 400
    twice = b'{"id": "a", "rows": [1], "label": 0, "label": 1}'
    assert anna.post("/v1/review/answers", content=twice, headers=json_type).status_code == 400
    assert anna.post("/v1/review/answers", content=b"id=1").status_code == 415
    large = b'{"id": "a", "rows": [' + b"1, " * 30_000_000 + b'1], "label": 1}'
    assert anna.post("/v1/review/answers", content=large, headers=json_type).status_code == 413
    assert click_log(session) == []


@pytest.mark.parametrize(
    "path",
    [
        "crops",
        "crops?rows=50",
        "crops?rows=-1",
        "crops?rows=" + ",".join(["1"] * 65),
        "crops?rows=99999999999999",
        "plane?z=1&y=2",
        "plane?z=nan&y=1&x=1",
        "plane?z=1e9&y=1&x=1",
        "batch?label=2&count=1",
        "batch?label=1&count=65",
        "queue?order=best",
        "near?z=1",
    ],
)
def test_what_cannot_be_read_is_refused(anna: TestClient, path: str):
    reply = anna.get(f"/v1/review/{path}")
    assert reply.status_code == 422, reply.text
    assert reply.json()["error"]["code"] == "unprocessable"
