"""A server on 127.0.0.1 that answers as the Hugging Face hub does to what is asked of it here."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class FakeHub:
    """Repositories by name, each a list of commits (files by name), and every request in order."""

    def __init__(self) -> None:
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.plain: dict[str, bytes] = {}  # files of a web server, by path
        self.requests: list[str] = []
        self.address = ""

    def sha(self, repo: str, number: int = -1) -> str:
        """Commit hash of a revision."""
        number %= len(self.repos[repo])
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """Files at `main` or a commit."""
        commits = self.repos.get(repo, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((each for at, each in enumerate(commits) if self.sha(repo, at) == revision), None)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running server; `address` is where it listens."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def missing(self, what: str) -> None:
            self.answer(b"{}", 404, X_Error_Code=what)

        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            if self.path in hub.plain:
                return self.answer(hub.plain[self.path])
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/?]+).*", self.path):
                repo, revision = match.groups()
                if repo not in hub.repos:
                    return self.missing("RepoNotFound")
                files = hub.files(repo, revision)
                if files is None:
                    return self.missing("RevisionNotFound")
                at = hub.sha(repo, next(n for n, each in enumerate(hub.repos[repo]) if each is files))
                siblings = [{"rfilename": name} for name in files]
                return self.answer(json.dumps({"id": repo, "sha": at, "siblings": siblings}).encode())
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+).*", self.path):
                files = hub.files(*match.groups()) or {}
                rows = [{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in files.items()]
                return self.answer(json.dumps(rows).encode())
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/?]+)", self.path):
                repo, revision, name = match.groups()
                data = (hub.files(repo, revision) or {}).get(name)
                if data is None:
                    return self.missing("EntryNotFound")
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                return self.answer(data, ETag=etag, X_Repo_Commit=revision)
            return self.missing("RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.requests.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "Authorization" not in self.headers:
                return self.answer(b'{"error": "no login"}', 401)
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                repo = (
                    f"{asked['organization']}/{asked['name']}" if "organization" in asked else asked["name"]
                )
                hub.repos.setdefault(repo, [])
                return self.answer(json.dumps({"url": f"{hub.address}/{repo}", "id": repo}).encode())
            if self.path == "/api/validate-yaml":  # of a README's head
                return self.answer(b'{"errors": [], "warnings": []}')
            repo = "/".join(self.path.split("/")[3:5])
            if repo not in hub.repos:
                return self.missing("RepoNotFound")
            if "/preupload/" in self.path:
                files = [
                    {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for each in json.loads(body)["files"]
                ]
                return self.answer(json.dumps({"files": files}).encode())
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            hub.repos[repo].append(
                {
                    each["value"]["path"]: base64.b64decode(each["value"]["content"])
                    for each in lines
                    if each["key"] == "file"
                }
            )
            oid = hub.sha(repo)
            url = f"{hub.address}/{repo}/commit/{oid}"
            return self.answer(json.dumps({"commitUrl": url, "commitOid": oid, "success": True}).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
