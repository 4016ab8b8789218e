"""What nobody may do to the service: keys, origins, paths, and what its answers give away."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.errors import CanvasError
from serving.api.middleware.auth import Buckets, holder_of, read_keys
from serving.core.volumes.register import below_roots
from serving.protocol import npy
from serving.protocol.errors import Refusal, without_folders
from serving.protocol.settings import ServiceSettings
from tests.serving.conftest import CROP, NPY, refused

KEYS = {"lab": "correct-horse-battery", "guest": "another-key-of-the-lab"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, model: Path, volume_path: Path) -> Path:
    """An allow-listed folder beside a secret one, with links out of it."""
    top = tmp_path_factory.mktemp("roots")
    (top / "allowed" / "deep").mkdir(parents=True)
    (top / "secret").mkdir()
    (top / "secret" / "config.json").write_text("{}")
    (top / "allowed" / "model").symlink_to(model)  # leads out: judged by where it ends
    (top / "allowed" / "out").symlink_to(top / "secret")
    import shutil

    shutil.copytree(model, top / "allowed" / "deep" / "copy")
    shutil.copytree(volume_path, top / "allowed" / "more.zarr")
    return top


@pytest.fixture(scope="module")
def guarded(begin_service, roots: Path) -> Iterator:
    """A service with keys, roots and one origin."""
    file = roots / "keys.txt"
    file.write_text("# who may ask\n" + "".join(f"{name} {key}\n" for name, key in KEYS.items()))
    file.chmod(0o600)
    with ExitStack() as stack:
        client = begin_service(
            stack,
            more={
                "keys": read_keys(file),
                "roots": (str(roots / "allowed"),),
                "origins": ("https://lab.example",),
            },
            headers={"Authorization": f"Bearer {KEYS['lab']}"},
        )
        yield client


# --- keys


def test_without_a_key_only_the_probes_answer(guarded) -> None:
    crops = npy.dump(np.zeros((1, *CROP), np.float32))
    for given in (
        "",
        "Bearer",
        "Bearer wrong-key-wrong-key",
        f"Basic {KEYS['lab']}",
        f"Bearer {KEYS['lab']}x",
    ):
        headers = {"Authorization": given}
        replies = [
            guarded.get("/v1/info", headers=headers),
            guarded.get("/metrics", headers=headers),
            guarded.get("/docs.json", headers=headers),
            guarded.get("/nothing", headers=headers),
            guarded.post("/v1/embed", content=crops, headers=NPY | headers),
            guarded.post("/embed_json", json={"crops": []}, headers=headers),
        ]
        for reply in replies:
            assert refused(reply, 401, "a key is needed") == refused(replies[0], 401)
            assert reply.headers["www-authenticate"] == "Bearer"
        assert guarded.get("/readyz", headers=headers).status_code == 200
        assert guarded.get("/livez", headers=headers).status_code == 200
    for key in KEYS.values():
        assert guarded.get("/v1/info", headers={"Authorization": f"bearer {key}"}).status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whichever key it is, or none: as many comparisons, each of digests of one length by compare_digest."""
    file = tmp_path / "keys"
    file.write_text("".join(f"k{i} {'secret-key-number-'}{i}\n" for i in range(5)))
    file.chmod(0o600)
    keys = read_keys(file)
    assert not any("secret" in digest for digest in keys.values())
    seen: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watched(first: str, second: str) -> bool:
        seen.append((len(first), len(second)))
        return compare(first, second)

    monkeypatch.setattr("serving.api.middleware.auth.hmac.compare_digest", watched)
    for key in ("secret-key-number-0", "secret-key-number-4", "s", "x" * 10_000, ""):
        seen.clear()
        with contextlib.suppress(Refusal):
            holder_of(keys, f"Bearer {key}")
        assert seen == [(64, 64)] * 5
    assert holder_of(keys, "Bearer secret-key-number-3") == "k3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# only words\n", "holds no key"),
        ("lab short\n", "line 1: write NAME KEY"),
        ("a b c d\n", "line 1: write NAME KEY"),
        (
            "lab correct-horse-battery\nlab another-key-of-the-lab\n",
            "line 2: the name or the key stands there twice",
        ),
        ("a correct-horse-battery\nb correct-horse-battery\n", "line 2: the name or the key"),
    ],
)
def test_keys_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(CanvasError, match=message):
        read_keys(file)


def test_a_file_of_keys_is_for_one_pair_of_eyes(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("correct-horse-battery\n")
    file.chmod(0o640)
    with pytest.raises(CanvasError, match="may be read by others of this machine; chmod 600"):
        read_keys(file)
    with pytest.raises(CanvasError, match="cannot be read"):
        read_keys(tmp_path / "nothing")


def test_each_key_has_a_bucket_of_its_own() -> None:
    now = [0.0]
    buckets = Buckets(lambda: now[0])
    for _ in range(3):
        buckets.take("lab", 2.0, 3)
    with pytest.raises(Refusal, match="2 requests a second are the most; come back in 1 s") as refusal:
        buckets.take("lab", 2.0, 3)
    assert (refusal.value.status, refusal.value.retry_after_s) == (429, 1)
    buckets.take("guest", 2.0, 3)
    now[0] = 0.6
    buckets.take("lab", 2.0, 3)
    with pytest.raises(Refusal):
        buckets.take("lab", 2.0, 3)
    for number in range(10_100):  # addresses without end do not fill the memory
        buckets.take(str(number), 2.0, 3)
    assert len(buckets._held) == 10_000


def test_rates_are_kept_by_the_service(start) -> None:
    client = start(rate_per_s=0.01, burst=30)
    codes = [client.get("/v1/info").status_code for _ in range(32)]
    assert codes.count(429) >= 2
    assert codes[0] == 200
    assert client.get("/v1/info").headers["retry-after"].isdigit()
    assert client.get("/readyz").status_code == 200


def test_wrong_keys_are_counted_by_address(start) -> None:
    """Who guesses keys is soon told to wait, and nobody who has one with it."""
    digest = hashlib.sha256(KEYS["lab"].encode()).hexdigest()
    client = start(rate_per_s=0.01, burst=20, more={"keys": {"lab": digest}})
    wrong = [{"Authorization": f"Bearer guess-number-{number:09}"} for number in range(25)]
    codes = [client.get("/v1/info", headers=header).status_code for header in wrong]
    assert codes == [401] * 20 + [429] * 5
    right = {"Authorization": f"Bearer {KEYS['lab']}"}
    assert client.get("/v1/info", headers=right).status_code == 200


# --- web pages


def test_a_web_page_reads_nothing_unless_its_origin_was_named(client, guarded) -> None:
    page = {"Origin": "https://elsewhere.example"}
    ask = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for service in (client, guarded):
        assert "access-control-allow-origin" not in service.get("/v1/info", headers=page).headers
        assert "access-control-allow-origin" not in service.options("/v1/embed", headers=ask).headers
    lab = {"Origin": "https://lab.example"}
    assert (
        guarded.get("/v1/info", headers=lab).headers["access-control-allow-origin"] == "https://lab.example"
    )
    reply = guarded.options("/v1/embed", headers=ask | lab | {"Authorization": ""})
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "https://lab.example"


# --- paths


STRANGE = [
    *("..", "../secret", "deep/../../secret", "out", "out/config.json", "/etc/passwd", "~", "~/x", "model"),
    *("deep/copy/../../../secret", "file:///etc/passwd", "http://localhost/x", "s3://bucket/x", "a\0b", ""),
    *(" ", ".", "deep\\..\\..\\secret", "%2e%2e/secret", "..%2fsecret", "....//secret", "//etc/passwd"),
    *("allowed/../..", "more.zarr/../../secret", "‥/secret", "deep/./.././../secret"),
]


def place_of(roots: list[str], given: str) -> Path | Refusal:
    try:
        return below_roots(roots, given)
    except Refusal as refusal:
        return refusal


def test_a_thousand_strings_lead_nowhere(roots: Path) -> None:
    allowed = [str(roots / "allowed")]
    assert below_roots(allowed, "deep/copy") == roots / "allowed" / "deep" / "copy"
    parts = ["..", ".", "deep", "out", "~", "%2e%2e", "..;", "secret", "etc", "…", "..\\", "\0", "copy"]
    rng = np.random.default_rng(0)
    tried = STRANGE + ["/".join(rng.choice(parts, rng.integers(1, 9))) for _ in range(1000)]
    for each in tried:
        found = place_of(allowed, each)
        if isinstance(found, Refusal):
            assert found.status == 404
            assert str(roots) not in found.message
        else:
            assert found.is_relative_to(roots / "allowed")
            assert "secret" not in found.parts
    with pytest.raises(Refusal, match="no folder was allow-listed") as closed:
        below_roots([], "deep/copy")
    assert closed.value.status == 403


def test_nothing_outside_the_roots_is_added(guarded, client, roots: Path) -> None:
    for route in ("/v1/models", "/v1/volumes"):
        for path in STRANGE:
            reply = guarded.post(route, json={"name": "x", "path": path})
            assert reply.status_code in (404, 422), (path, reply.text)
            assert str(roots) not in reply.text
        refused(
            client.post(route, json={"name": "x", "path": "deep/copy"}), 403, "no folder was allow-listed"
        )
        refused(guarded.post(route, json={"name": "../x", "path": "deep"}), 422, "name")
        refused(guarded.post(route, data={"name": "x"}), 415)
        message = refused(guarded.post(route, json={"name": "x", "path": "deep"}), 422)
        assert "/" not in message.replace("and/or", "")
    assert guarded.post("/v1/volumes", json={"name": "more", "path": "more.zarr"}).status_code == 201
    refused(
        guarded.post("/v1/volumes", json={"name": "more", "path": "more.zarr"}), 409, "registered as 'more'"
    )
    asked = {"volume": "more", "points_zyx": [[9, 9, 9]]}
    assert guarded.post("/v1/embed/points", json=asked).status_code == 200
    assert guarded.post("/v1/models", json={"name": "second", "path": "deep/copy"}).status_code == 201
    assert [each["name"] for each in guarded.get("/v1/models").json()["models"]] == ["tiny", "second"]


def test_sentences_keep_the_folders_to_themselves() -> None:
    said = without_folders(
        "/srv/lab/b.zarr has no chunk; copy '/home/me/x' (see /v1/info at http://h/v1/embed)"
    )
    assert said == "b.zarr has no chunk; copy 'x' (see info at http://h/v1/embed)"


# --- logs and figures


def test_requests_are_logged_by_route_with_an_id(client, caplog, monkeypatch) -> None:
    from serving.observe.access_log import _Json

    monkeypatch.setattr(logging.getLogger("serving.access"), "level", logging.INFO)
    with caplog.at_level(logging.INFO, logger="serving.access"):
        reply = client.get("/v1/info", headers={"X-Request-ID": "mine-1"})
        strange = client.get("/v1/secret-path", headers={"X-Request-ID": "bad id\t"})
    assert reply.headers["x-request-id"] == "mine-1"
    assert re.fullmatch("[0-9a-f]{32}", strange.headers["x-request-id"])
    lines = [
        json.loads(_Json().format(record)) for record in caplog.records if record.name == "serving.access"
    ]
    assert [(line["route"], line["status"], line["method"]) for line in lines] == [
        ("/v1/info", 200, "GET"),
        ("other", 404, "GET"),
    ]
    assert all("secret-path" not in json.dumps(line) for line in lines)


def test_figures_are_not_labelled_by_what_strangers_send(client) -> None:
    for number in range(20):
        client.get(f"/random/{number}")
    client.post("/v1/embed", content=npy.dump(np.zeros((3, *CROP), np.float32)), headers=NPY)
    text = client.get("/metrics").text
    assert "/random" not in text
    assert 'canvas_fm_requests_total{route="other",status="404"}' in text
    assert 'canvas_fm_requests_total{route="/v1/embed",status="200"}' in text
    for name in ("canvas_fm_request_seconds_bucket", "canvas_fm_queue_crops", "canvas_fm_batch_crops_bucket"):
        assert name in text


# --- what is known at once


def test_settings_that_cannot_be_meant(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.launch.serve import serve

    monkeypatch.setattr("serving.launch.serve._run", lambda *given: pytest.fail("it was started"))
    open_keys = tmp_path / "keys"
    open_keys.write_text("correct-horse-battery\n")
    os.chmod(open_keys, 0o644)
    for options, message in [
        ({"keys": open_keys}, "may be read by others"),
        ({"roots": [tmp_path / "nothing"]}, "the folder to allow is not there"),
        ({"origins": ["*"]}, "is no origin of a web page"),
        ({"indexes": {"cells": tmp_path / "nothing"}}, "the index cells is not there"),
        ({"models": {"a/b": model}}, "the model name 'a/b' may hold"),
        ({"models": {model.name: model}}, f"two models are called '{model.name}'"),
    ]:
        with pytest.raises(CanvasError, match=re.escape(message)):
            serve(model, port=0, **options)


def test_a_worker_learns_digests_and_never_a_key(model: Path, tmp_path: Path, monkeypatch) -> None:
    from serving.launch.serve import serve

    file = tmp_path / "keys"
    file.write_text("lab correct-horse-battery\n")
    file.chmod(0o600)
    told: list[ServiceSettings] = []
    monkeypatch.setattr("serving.launch.serve._run", lambda settings, *rest: told.append(settings))
    serve(model, port=0, keys=file)
    assert "horse" not in told[0].model_dump_json()
    assert holder_of(told[0].keys, "Bearer correct-horse-battery") == "lab"
