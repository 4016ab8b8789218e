"""Every kind of error, from whichever route: one shape, its own word, and told of in the document."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from canvas_fm.errors import CanvasError, DamagedStore, StorageFull
from serving.api.middleware.auth import _digest
from serving.protocol.errors import _CODES, HINTS, code_of, of_library

KEY = {"Authorization": "Bearer a-key-of-the-laboratory"}
NPY, JSON = {"Content-Type": "application/x-npy"}, {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service(begin_service, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    more = {"keys": {"lab": _digest(KEY["Authorization"].removeprefix("Bearer "))}}
    more["jobs"] = str(tmp_path_factory.mktemp("jobs"))
    with ExitStack() as stack:
        client = begin_service(stack, more=more, headers=KEY, max_json_mb=0.1)
        yield client


def job_body(**more: object) -> dict:
    return {"kind": "embed", "volume": "cube", "points_zyx": [[9, 9, 9]], **more}


# status → (method, path, what httpx takes); those that need a fault or a full queue have their own tests.
ASKED = {
    400: ("POST", "/v1/embed", {"content": b"no npy", "headers": NPY}),
    401: ("GET", "/v1/models", {"headers": {"Authorization": "Bearer another-key-of-nobody"}}),
    403: ("POST", "/v1/models", {"json": {"name": "x", "path": "x"}}),
    404: ("GET", f"/v1/jobs/{'0' * 32}", {}),
    405: ("PUT", "/v1/refine", {}),
    409: ("POST", "/v1/jobs", {"json": job_body(pool="cls"), "headers": {"Idempotency-Key": "one-and-only"}}),
    413: ("POST", "/v1/jobs", {"content": b" " * 200_000, "headers": JSON}),
    415: ("POST", "/v1/embed", {"content": b"x", "headers": {"Content-Type": "text/plain"}}),
    422: ("POST", "/v1/jobs", {"json": {"kind": "embed", "volume": "cube"}}),
}
ELSEWHERE = {
    408: "test_security: a body that does not come",
    429: "test_jobs: so many jobs wait",
    500: "test_app: a bug",
    503: "test_app: the model loads",
    504: "test_refine: late",
    507: "test_jobs: the disk is full",
}


def test_every_status_has_a_request_here_or_elsewhere() -> None:
    assert set(ASKED) | set(ELSEWHERE) == set(_CODES)


@pytest.mark.parametrize("status", ASKED)
def test_errors_have_one_shape(service, status: int) -> None:
    method, path, options = ASKED[status]
    if status == 409:
        service.post("/v1/jobs", json=job_body(), headers=options["headers"])
    reply = service.request(method, path, **options)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    said = reply.json()
    assert set(said) == {"error"}
    assert set(said["error"]) == {"code", "message"}
    assert said["error"]["code"] == code_of(status)
    assert len(said["error"]["message"]) > 10
    assert "/tmp" not in reply.text
    documented = service.get("/v1/openapi.json").json()["paths"]
    template = path if path in documented else "/v1/jobs/{id}"
    if status != 405:
        assert str(status) in documented[template][method.lower()]["responses"]


@pytest.mark.parametrize(
    "path", ["/v1/embed", "/v1/embed/points", "/v1/jobs", "/v1/models", "/v1/volumes", "/v1/reconstruct"]
)
def test_every_route_says_what_it_reads(service, path: str) -> None:
    reply = service.post(path, content=b"x", headers={"Content-Type": "text/plain"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_an_error_of_the_library_names_no_folder_and_damage_is_the_services_fault() -> None:
    mistake = of_library(CanvasError("/data/lab/brain.zarr has no voxel size; give --voxel-um"))
    assert (mistake.status, mistake.message) == (422, "brain.zarr has no voxel size; give --voxel-um")
    assert of_library(StorageFull("/data/jobs is full")).status == 507
    damaged = of_library(DamagedStore("/data/brain.zarr", "0", "c/0/0/0", "its crc32 differs"))
    assert (damaged.status, damaged.message) == (500, HINTS[500])


def test_a_parameter_that_a_json_route_does_not_know_is_refused(service) -> None:
    for path in ("/v1/embed/points", "/v1/models", "/v1/volumes", "/v1/jobs"):
        reply = service.post(f"{path}?pool=cls", json={})
        assert (reply.status_code, "'pool' is unknown here" in reply.text) == (422, True), path
