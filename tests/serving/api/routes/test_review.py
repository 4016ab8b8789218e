"""The review as part of the service: its routes are behind the service's keys, its clicks on the disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from serving.launch.serve import settings_of
from serving.protocol.serve_flags import ServedVolume, ServeOptions
from serving.protocol.settings import Limits, ServedReview
from tests.serving.conftest import JSON, SHAPE, refused

KEYS = {"anna": "key-of-anna-0123456789", "ben": "key-of-ben-0123456789"}


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    path = tmp_path / "candidates.csv"
    Points(np.random.default_rng(0).random((30, 3)) * (np.array(SHAPE) - 1)).write(path)
    return path


def reviewed(candidates: Path) -> dict:
    labels = str(candidates.with_name("labels.csv"))
    return {"reviewed": ServedReview(volume="cube", candidates=str(candidates), labels=labels)}


def clicks(candidates: Path) -> list[dict]:
    text = candidates.with_name("labels.csv.clicks.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()[1:]]


def test_candidates_of_a_served_volume_are_reviewed(start, candidates: Path) -> None:
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    as_anna, as_ben = ({"Authorization": f"Bearer {key}"} for key in KEYS.values())
    client = start(more=reviewed(candidates) | {"keys": digests}, headers=as_anna)
    about = client.get("/v1/review/").json()
    assert (about["volume"], about["annotator"], about["annotators"]) == ("cube", "anna", ["anna", "ben"])
    assert client.get("/v1/info").json()["reviewed"] == "cube"
    row = about["queue"][0]["row"]
    crop = client.get(f"/v1/review/crops?rows={row}")
    assert crop.headers["content-type"] == "application/x-npy"
    for headers, label in ((as_anna, 1), (as_ben, 0)):
        body = {"id": f"click-{label}", "rows": [row], "label": label}
        assert client.post("/v1/review/answers", json=body, headers=headers).status_code == 200
    assert [(click["by"], click["label"]) for click in clicks(candidates)] == [("anna", 1), ("ben", 0)]
    guessed = {"Authorization": "Bearer a-key-that-was-guessed"}
    refused(client.get("/v1/review/queue", headers=guessed), 401, "a key is needed")
    assert client.get("/ui/review/review.html").status_code == 200
    # What is no answer leaves nothing.
    for path, body, status, part in (
        ("answers", {"id": "x", "rows": [], "label": 1}, 422, "rows"),
        ("answers", {"id": "x", "rows": [99], "label": 1}, 422, "rows go from 0 to 29"),
        ("back", {"id": "x" * 2**17}, 413, "65536 are the most"),
        ("missed", {"id": "x", "zyx": [900, 1, 1]}, 422, "outside the volume"),
    ):
        refused(client.post(f"/v1/review/{path}", json=body), status, part)
    refused(client.post("/v1/review/back", content=b"{", headers=JSON), 400)
    refused(client.post("/v1/review/back", content=b"{}"), 415, "application/json")
    refused(client.get("/v1/review/queue?order=best"), 422, "best")
    assert len(clicks(candidates)) == 2


def test_without_keys_one_person_reviews_and_labels_are_written_at_the_end(
    begin_service, candidates: Path
) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        client = begin_service(stack, more=reviewed(candidates))
        row = client.get("/v1/review/queue").json()["queue"][0]["row"]
        assert client.post("/v1/review/answers", json={"id": "a", "rows": [row], "label": 1}).is_success
    written = Points.read(candidates.with_name("labels.csv"))
    assert written.columns["label"][row] == 1
    assert clicks(candidates)[0]["by"] == "me"


def test_where_nothing_is_reviewed_the_routes_say_how_to(client) -> None:
    refused(client.get("/v1/review/queue"), 404, "started without --review VOLUME=CANDIDATES")
    assert client.get("/v1/info").json()["reviewed"] is None
    paths = client.get("/v1/openapi.json").json()["paths"]
    assert {"/v1/review/", "/v1/review/queue", "/v1/review/answers", "/v1/review/missed"} <= set(paths)
    assert paths["/v1/review/answers"]["post"]["summary"].startswith("Record a label of rows")


def test_what_is_no_review_is_refused_at_the_start(model: Path, volume_path: Path, candidates: Path) -> None:
    def settings(**options):
        volumes = {"cube": ServedVolume(path=str(volume_path))}
        none: dict = {"models": {}, "refiners": {}, "indexes": {}}
        return settings_of(model, volumes, **none, limits=Limits(), options=ServeOptions.of(**options))

    found = settings(review=f"cube={candidates}").reviewed
    assert found == ServedReview(
        volume="cube", candidates=str(candidates), labels=str(candidates.with_name("candidates.labels.csv"))
    )
    for options, message in (
        ({"review": f"other={candidates}"}, "with one of --volume: cube"),
        ({"review": "cube"}, "expected VOLUME=CANDIDATES"),
        ({"review": "cube=nothing.csv"}, "candidates to review are not there: nothing.csv"),
        ({"review": f"cube={candidates}", "workers": 2}, "a review is written by one process"),
        ({"labels": "labels.csv"}, "--labels goes with --review"),
    ):
        with pytest.raises(CanvasError, match=message):
            settings(**options)
