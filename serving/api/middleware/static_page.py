"""Static files of the page at `/ui`, with a strict Content-Security-Policy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from serving.protocol.errors import Refusal

FOLDER = "/ui/"
# Where `/`, `/ui` and `/docs` are led to: routes that answer with the way to the page.
MOVED = {"/": "/ui/-page", "/ui": "/ui/-page", "/docs": "/ui/-docs"}
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts, styles and requests of this service alone; pictures that the page made itself; nobody frames it,
# and no text becomes markup (trusted types).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# The page of the routes runs BentoML's copy of Swagger, which styles what it draws in place.
_SWAGGER_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and answered by 304 where it is the same
}


def _contents(folder: Traversable, start: str = "") -> Iterator[tuple[str, bytes]]:
    """Every file by its name below the page's folder, `crop/crop.js`."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _contents(path, f"{start}{path.name}/")
        else:
            yield start + path.name, path.read_bytes()


def create_page() -> Starlette:
    """The app to mount at `/ui`; unknown files are 404."""
    contents = dict(_contents(files("serving") / "ui"))
    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:32]}"' for name, content in contents.items()}

    # Relative, so that a proxy may put the service below a path of its own.
    async def to_page(request: Request) -> Response:
        return RedirectResponse("ui/")

    async def to_docs(request: Request) -> Response:
        return RedirectResponse("ui/docs.html")

    async def file(request: Request) -> Response:
        name = request.path_params["name"] or "index.html"
        kind = _KINDS.get(name[name.rfind(".") :])
        if name not in contents or kind is None:
            return Refusal(404, f"the page has no file {name[:80]!r}; it begins at /ui/").response()
        headers = {**_HEADERS, "ETag": tags[name]}
        if name == "docs.html":
            headers["Content-Security-Policy"] = _SWAGGER_POLICY
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(contents[name], media_type=kind, headers=headers)

    return Starlette(routes=[Route("/-page", to_page), Route("/-docs", to_docs), Route("/{name:path}", file)])
