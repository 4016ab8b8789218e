"""Remote volumes of the service: off unless allowed, only at pinned addresses, the numbers of local ones."""

from __future__ import annotations

import _socket
import ipaddress
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme

import canvas_fm as cf
from canvas_fm.cli import main
from canvas_fm.data.store.remote.remote_store import Remote
from canvas_fm.errors import CanvasError
from serving.core.volumes.remote_volumes import is_public, open_volume, pin
from serving.protocol.errors import without_folders
from serving.protocol.serve_flags import ServedVolume
from serving.protocol.settings import ServiceSettings
from tests.support.object_store import NAME, Objects, serving

POINTS = [[12.0, 30.0, 25.0], [3.0, 8.0, 8.0], [20.0, 55.0, 44.0], [12.4, 29.0, 1.0]]


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return authority, path


@pytest.fixture
def objects(
    volume_path: Path, trusted: tuple[trustme.CA, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Objects]:
    """The folder of the volume `cube.zarr` by https."""
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted[1]))
    with serving(volume_path.parent, trusted[0]) as served:
        yield served


def looked_up(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let names lead to these addresses, the first time to the first ones; returns what is asked for."""
    asked: list[str] = []

    def look_up(host: str, port: int, *_: object, **__: object) -> list:
        found = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        family = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [(family[ipaddress.ip_address(each).version], 1, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize(
    "given", ["https://data.example.org/a/brain.zarr", "https://data.example.org/a/brain.zarr/"]
)
def test_remote_volumes_are_off_by_default(given: str, model: Path, capsys: pytest.CaptureFixture):
    assert main(["serve", str(model), "--volume", f"brain={given}"]) == 1
    said = capsys.readouterr().err
    assert "the volume brain lies on data.example.org, and remote volumes are off" in said
    assert "--allow-remote data.example.org" in said


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        ("https://other.example.org/b.zarr", "other.example.org"),
        ("https://sub.data.example.org/b.zarr", "sub.data.example.org"),
        ("https://data.example.org.evil.example/b.zarr", "data.example.org.evil.example"),
        ("https://data.example.org:8443/b.zarr", "data.example.org:8443"),
        ("https://9.9.9.9/b.zarr", "9.9.9.9"),
        ("s3://bucket/b.zarr", "bucket.s3.amazonaws.com"),
    ],
)
def test_a_host_that_is_not_on_the_list_is_refused(given: str, lacks: str, monkeypatch: pytest.MonkeyPatch):
    asked = looked_up(monkeypatch, ["93.184.215.14"])
    with pytest.raises(CanvasError, match=r"only data\.example\.org may be read") as found:
        pin({"b": given}, ["data.example.org"])
    assert str(found.value).endswith(f"--allow-remote {lacks}")
    assert not asked
    pin({"b": given}, [lacks])  # as the sentence says


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.5", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "169.254.169.254", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1",
        "255.255.255.255", "::", "::1", "::7f00:1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1",
        "ff02::1", "ff0e::1", "2001:db8::1", "2002:7f00:1::", "2002:5db8:d70e::1", "2001:0:7f00::1",
        "::ffff:127.0.0.1", "::ffff:93.184.215.14", "64:ff9b::10.0.0.5", "64:ff9b::7f00:1",
        "64:ff9b:1::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused_unless_written_out(
    address: str, monkeypatch: pytest.MonkeyPatch
):
    assert not is_public(ipaddress.ip_address(address))
    looked_up(monkeypatch, ["93.184.215.14", address])  # one of several is enough
    volumes = {"b": "https://data.example.org/b.zarr"}
    with pytest.raises(CanvasError, match="which is not a public address") as found:
        pin(volumes, ["data.example.org"])
    entry = str(found.value).rpartition("--allow-remote ")[2]
    assert entry == f"data.example.org={ipaddress.ip_address(address)}"
    assert pin(volumes, [entry])[1] == {"data.example.org": (str(ipaddress.ip_address(address)),)}


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::5db8:d70e"])
def test_a_public_address_is_pinned(address: str, monkeypatch: pytest.MonkeyPatch):
    looked_up(monkeypatch, [address])
    volumes, pinned = pin({"b": "s3://bucket/b.zarr", "near": "b.zarr"}, ["bucket.s3.amazonaws.com"])
    assert volumes == {"b": "https://bucket.s3.amazonaws.com/b.zarr"}
    assert pinned == {"bucket.s3.amazonaws.com": (address,)}


def test_an_address_in_place_of_a_name_is_its_own_permission(monkeypatch: pytest.MonkeyPatch):
    asked = looked_up(monkeypatch, ["93.184.215.14"])
    volumes = {"b": "https://10.0.0.5:9000/b.zarr", "c": "https://[fd00::5]/b.zarr"}
    _, pinned = pin(volumes, ["10.0.0.5:9000", "[FD00::5]"])
    assert pinned == {"10.0.0.5:9000": ("10.0.0.5",), "[fd00::5]": ("fd00::5",)}
    assert not asked


@pytest.mark.parametrize(
    "spelt", ["https://2130706433/b.zarr", "https://0x7f.1/b.zarr", "https://127.1/b.zarr"]
)
def test_an_address_in_disguise_is_refused(spelt: str):
    host = spelt.split("/")[2]
    with pytest.raises(CanvasError, match=r"leads to 127\.0\.0\.1, which is not a public address"):
        pin({"b": spelt}, [host])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("https://data.example.org", "a host alone"),
        ("data.example.org/b", "a host alone"),
        ("data.example.org=localhost", "IP addresses were expected"),
        ("data.example.org=", "IP addresses were expected"),
        ("*.example.org", "is no host"),
        ("", "is no host"),
    ],
)
def test_an_entry_that_is_no_host_is_refused(entry: str, said: str):
    with pytest.raises(CanvasError, match=said):
        pin({}, [entry])


def test_a_name_is_looked_up_once_whatever_it_leads_to_later(
    objects: Objects, volume_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
):
    """DNS rebinding: public when it is judged, this machine when it is used."""
    asked = looked_up(monkeypatch, ["93.184.215.14"], ["127.0.0.1"])
    origin = f"{NAME}:{objects.port}"
    volumes, pinned = pin({"b": objects.address("cube.zarr"), "c": objects.address("cube.zarr")}, [origin])
    settings = ServiceSettings(model=str(model), volumes=volumes, pinned=pinned)
    dialled: list[tuple[str, int]] = []

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        dialled.append(address)
        _socket.socket.connect(self, ("127.0.0.1", objects.port))  # stands for the host in public

    monkeypatch.setattr(socket.socket, "connect", connect)
    far = open_volume(settings, settings.volumes["b"])
    np.testing.assert_array_equal(
        far.read((0, 0, 0), far.shape_zyx), cf.Volume.open(volume_path).read((0, 0, 0), far.shape_zyx)
    )
    assert set(dialled) == {("93.184.215.14", objects.port)}
    assert asked == [NAME]


def test_a_worker_opens_no_host_that_was_not_pinned(objects: Objects, model: Path):
    with pytest.raises(CanvasError, match="was not allowed"):
        open_volume(ServiceSettings(model=str(model)), ServedVolume(path=objects.address("cube.zarr")))
    assert not objects.asked


def both(objects: Objects, volume_path: Path) -> dict:
    """Settings of a service with the same volume near and far."""
    return {
        "volumes": {"near": str(volume_path), "far": objects.address("cube.zarr")},
        "pinned": {f"{NAME}:{objects.port}": ("127.0.0.1",)},
    }


def ask(client, volume: str, points: list = POINTS):
    return client.post("/v1/embed/points", json={"volume": volume, "points_zyx": points})


def test_embeddings_of_a_remote_volume_are_those_of_the_local_one(
    objects: Objects, volume_path: Path, start: Callable
):
    client = start(more=both(objects, volume_path))
    near, far = ask(client, "near"), ask(client, "far")
    assert far.status_code == 200, far.text
    assert far.content == near.content
    info = client.get("/v1/info").json()["volumes"]
    assert info["far"] == info["near"]


def test_a_job_on_a_remote_volume_gives_the_same_too(
    objects: Objects, volume_path: Path, start: Callable, tmp_path: Path
):
    client = start(more=both(objects, volume_path) | {"jobs": str(tmp_path / "jobs")})
    results = []
    for volume in ("near", "far"):
        job = client.post("/v1/jobs", json={"kind": "embed", "volume": volume, "points_zyx": POINTS}).json()
        end = time.monotonic() + 60
        while (said := client.get(f"/v1/jobs/{job['id']}").json())["state"] != "done":
            assert said["state"] in ("queued", "running"), said
            assert time.monotonic() < end
            time.sleep(0.05)
        results.append(client.get(f"/v1/jobs/{job['id']}/result").content)
    assert results[0] == results[1]


def test_the_command_serves_what_it_was_allowed_to(
    objects: Objects,
    volume_path: Path,
    model: Path,
    start: Callable,
    monkeypatch: pytest.MonkeyPatch,
):
    """The command's settings, as its worker process reads them, in a service of this process."""
    written: list[str] = []
    monkeypatch.setattr(
        "serving.launch.serve._run", lambda settings, *rest: written.append(settings.model_dump_json())
    )
    volumes = [f"far={objects.address('cube.zarr')}", f"near={volume_path}"]
    words = ["serve", str(model), "--port", "0", "--volume", *volumes]
    assert main([*words, "--allow-remote", f"{NAME}:{objects.port}=127.0.0.1"]) == 0
    settings = ServiceSettings.model_validate_json(written[0])
    client = start(more={name: getattr(settings, name) for name in ServiceSettings.model_fields})
    near, far = ask(client, "near"), ask(client, "far")
    assert far.status_code == 200, far.text
    assert far.content == near.content


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (503, 503, "its remote store does not answer"),
        (403, 500, "server's log says why"),
        (404, 500, "is damaged"),
    ],
)
def test_a_fault_of_the_remote_store_is_told_without_its_address(
    objects: Objects,
    volume_path: Path,
    start: Callable,
    fault: int,
    status: int,
    said: str,
):
    client = start(more=both(objects, volume_path))
    objects.faults["0/c/0/0/0"] = fault
    reply = ask(client, "far")
    assert reply.status_code == status, reply.text
    assert said in reply.json()["error"]["message"]
    assert ("retry-after" in reply.headers) == (status == 503)
    assert NAME not in reply.text
    assert "127.0.0.1" not in reply.text
    del objects.faults["0/c/0/0/0"]
    assert ask(client, "far").status_code == 200


def test_clients_name_registered_volumes_and_no_address_is_fetched_for_them(
    objects: Objects, volume_path: Path, start: Callable
):
    client = start(more=both(objects, volume_path) | {"roots": (str(volume_path.parent),)})
    del objects.asked[:]
    address = objects.address("cube.zarr")
    for given in (
        address,
        address.replace("https", "HTTPS"),
        address.replace("//", "/"),
        "s3://bucket/cube.zarr",
    ):
        assert ask(client, given).status_code == 404
        added = client.post("/v1/volumes", json={"name": "more", "path": given})
        assert added.status_code == 404, added.text
        assert client.get("/v1/crop", params={"volume": given, "z": 1, "y": 1, "x": 1}).status_code == 404
    assert not objects.asked


def test_sentences_lose_the_address_of_a_remote_store(tmp_path: Path):
    files = Remote("https://data.example.org/secret/place/brain.zarr", ["127.0.0.1"])
    for shown in (str(files), str(Path(str(files))), "s3://bucket/secret/place/brain.zarr"):
        said = without_folders(f"{shown}: array '0' is damaged; see ({shown}) and {shown}")
        assert said == "brain.zarr: array '0' is damaged; see (brain.zarr) and brain.zarr"
