"""nginx in front of the service: `deploy/nginx.conf` fits its limits, and what clients send passes."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import canvas_fm as cf
from serving.protocol import npy
from serving.protocol.errors import code_of
from serving.protocol.settings import Limits

CONFIGURATION = (Path(__file__).parents[3] / "deploy" / "nginx.conf").read_text(encoding="utf-8")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def figure(directive: str) -> int:
    return int(re.search(rf"^\s*{directive} (\d+)[ms];", CONFIGURATION, re.M)[1])


def test_its_figures_fit_the_limits_of_the_service():
    limits = Limits()
    assert figure("client_max_body_size") > limits.max_body_mb
    assert figure("proxy_read_timeout") > limits.deadline_s
    assert figure("client_header_timeout") == limits.header_s
    assert figure("client_body_timeout") == limits.stall_s


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Proxy:
    """nginx with the configuration of `deploy`, at other ports and with a certificate of the test."""

    def __init__(self, folder: Path, behind: str) -> None:
        authority = pytest.importorskip("trustme").CA()
        authority.cert_pem.write_to_path(folder / "authority.pem")
        certificate = authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(folder / "canvas.key")
        for each in certificate.cert_chain_pems:
            each.write_to_path(folder / "canvas.crt", append=True)
        self.port = free_port()
        server = CONFIGURATION.replace("/etc/nginx/tls", str(folder))
        server = server.replace("listen 443", f"listen 127.0.0.1:{self.port}")
        server = server.replace("http://127.0.0.1:3000", behind)
        places = "".join(
            f"{kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        main = folder / "nginx.conf"
        main.write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
            f"http {{ access_log off; {places}\n{server} }}\n"
        )
        command = [str(NGINX), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(main)]
        subprocess.run([*command, "-t"], check=True, capture_output=True)
        self.process = subprocess.Popen(command)
        self.url = f"https://localhost:{self.port}"
        self.trusted = ssl.create_default_context(cafile=str(folder / "authority.pem"))
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((folder / "error.log").read_text())


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator:
    """`proxied(url)`: nginx in front of that address."""
    if NGINX is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    os.chmod(tmp_path, 0o755)  # nginx's workers are another user
    started: list[Proxy] = []

    def begin(behind: str) -> Proxy:
        started.append(Proxy(tmp_path, behind))
        return started[-1]

    yield begin
    for proxy in started:
        proxy.process.terminate()
        proxy.process.wait(10)


def test_a_service_that_is_down_is_said_in_the_shape_of_its_errors(proxied):
    proxy = proxied(f"http://127.0.0.1:{free_port()}")
    with httpx.Client(base_url=proxy.url, verify=proxy.trusted, trust_env=False) as client:
        reply = client.get("/readyz")
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert reply.json()["error"]["code"] == code_of(503)
        assert client.get("/metrics").status_code == 404
    asks = http.client.HTTPSConnection("localhost", proxy.port, context=proxy.trusted, timeout=30)
    asks.putrequest("POST", "/v1/embed")
    asks.putheader("Content-Length", str(301 * 2**20))
    asks.endheaders()  # it is refused before the body is sent
    refusal = asks.getresponse()
    assert (refusal.status, json.load(refusal)["error"]["code"]) == (413, code_of(413))
    asks.close()


@pytest.mark.slow
def test_what_is_served_is_the_same_through_nginx(
    proxied, serve_command, model, encoder, crops, volume_path, tmp_path
):
    keys = tmp_path / "keys.txt"
    keys.write_text("lab a-long-key-of-the-laboratory\n")
    keys.chmod(0o600)
    arguments = [str(model), "--volume", f"cube={volume_path}", "--keys", str(keys), "--port", "0"]
    served = serve_command(*arguments, "--limit", "max_body_mb=1")
    proxy = proxied(served.url())
    key = {"Authorization": "Bearer a-long-key-of-the-laboratory"}
    with httpx.Client(base_url=proxy.url, verify=proxy.trusted, trust_env=False, timeout=60) as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/info").status_code == 401
        page = client.get("/ui", follow_redirects=True)
        assert (page.status_code, page.url.host, page.url.port) == (200, "localhost", proxy.port)
        sent = {"Content-Type": npy.MEDIA_TYPE} | key
        reply = client.post("/v1/embed", content=npy.dump(crops), headers=sent | {"X-Request-ID": "mine"})
        assert reply.headers["x-request-id"] == "mine"
        np.testing.assert_allclose(
            np.load(io.BytesIO(reply.content)), cf.embed_crops(encoder, crops), atol=1e-5
        )
        large = npy.dump(np.zeros((200, *crops.shape[1:]), np.float32))
        reply = client.post("/v1/embed", content=large, headers=sent)
        assert reply.status_code == 413
        assert "larger than 1 MB" in reply.json()["error"]["message"]
    served.stop()
