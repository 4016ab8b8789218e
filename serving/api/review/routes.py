"""Routes of the review's page, below /v1/review: the queue, answers, crops, surroundings, missed cells."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.heads.review.order import ORDERS
from serving.api.middleware.request_middleware import HOLDER, RequestMiddleware
from serving.api.middleware.static_page import create_page
from serving.api.review.crops import PLANE, crops_at, plane_at, view_zyx
from serving.protocol import npy
from serving.protocol.errors import Refusal, refused
from serving.protocol.json_process.child import parse
from serving.protocol.review import MOST_ROWS, Answer, Back, MissedCell
from serving.protocol.settings import NO_SETTINGS

if TYPE_CHECKING:
    from canvas_fm.heads.review.session import ReviewSession

QUEUE, NEAR = 16, 2000
MOST_BODY = 2**16  # bytes: 64 rows and their label take a few hundred
ALONE = "me"  # who reviews where nobody has a key


def create_review(session: ReviewSession, volume: Volume, keys: Mapping[str, str]) -> RequestMiddleware:
    """The page at /ui/review/review.html and its routes; `keys` are sha256 of each annotator's key, by name.

    Behind the same middleware as the service's routes: keys, limits of bodies, one form of errors.
    """
    routes = Routes(session, volume)
    listed = routes.listed()
    inner = Starlette(
        routes=[Mount("/ui", create_page()), Mount("/v1/review", routes=listed)],
        exception_handlers={Refusal: _refusal, CanvasError: _canvas_error},
    )
    paths = [f"/v1/review{route.path}" for route in listed]
    posted = [f"/v1/review/{name}" for name in ("answers", "back", "missed")]
    return RequestMiddleware(
        inner,
        SimpleNamespace(settings=NO_SETTINGS.model_copy(update={"keys": dict(keys)})),
        only_json=posted,
        routes=[*paths, "/ui/"],
        moved={"/": "/ui/review/review.html"},
    )


class Routes:
    """Handlers of one session."""

    def __init__(self, session: ReviewSession, volume: Volume) -> None:
        self.session, self.volume, self.size = session, volume, view_zyx(volume)

    def listed(self) -> list[Route]:
        gets = {"/": self.about, "/queue": self.queue, "/batch": self.batch, "/crops": self.crops}
        gets |= {"/plane": self.plane, "/near": self.near}
        posts = {"/answers": self.answers, "/back": self.back, "/missed": self.missed}
        return [
            *(Route(path, handler, methods=["GET"]) for path, handler in gets.items()),
            *(Route(path, handler, methods=["POST"]) for path, handler in posts.items()),
        ]

    async def about(self, request: Request) -> Response:
        """Volume, annotator and progress of the review."""
        volume, session, by = self.volume, self.session, _by(request)
        return JSONResponse(
            {
                "volume": volume.name,
                "marker": volume.marker,
                "shape_zyx": list(volume.shape_zyx),
                "voxel_um": list(volume.voxel_um),
                "window": [float(end) for end in volume.window],
                "crop_zyx": list(self.size),
                "plane": PLANE,
                "annotator": by,
                "annotators": list(session.annotators),
                "orders": list(ORDERS),
                "order": session.order,
                "out": session.out.name,
                **await run_sync(self._next, by, session.order),
            }
        )

    async def queue(self, request: Request) -> Response:
        """The next rows in an order."""
        return JSONResponse(await run_sync(self._next, _by(request), _order(request)))

    async def batch(self, request: Request) -> Response:
        """Rows that are most surely of one label, for a grid."""
        label, count = _whole(request, "label", 0, 1), _whole(request, "count", 1, MOST_ROWS)
        rows = await run_sync(self.session.batch, _by(request), label, count)
        return JSONResponse({"rows": [self._row(row) for row in rows]})

    async def answers(self, request: Request) -> Response:
        """Record a label of rows; those in `wrong` get the other one."""
        by, order, body = _by(request), _order(request), parse(Answer, await _body(request))
        if set(body.wrong) - set(body.rows) or (body.wrong and body.label < 0):
            raise Refusal(422, "wrong names rows of the grid, whose label is 1 or 0")

        def record() -> dict[str, Any]:
            labels = {row: 1 - body.label if row in set(body.wrong) else body.label for row in body.rows}
            if body.wrong:
                self.session.answer_each(by, body.id, labels)
            else:
                self.session.answer(by, body.id, body.rows, body.label)
            return self._next(by, order)

        return JSONResponse(await run_sync(record))

    async def back(self, request: Request) -> Response:
        """Take the last answer back; its first row comes first again."""
        by, order, body = _by(request), _order(request), parse(Back, await _body(request))

        def undo() -> dict[str, Any]:
            rows = self.session.back(by, body.id)
            queue = self._next(by, order)
            again = [self._row(row) for row in rows[:1]]
            kept = [row for row in queue["queue"] if row["row"] not in rows[:1]]
            return queue | {"queue": again + kept, "undone": rows}

        return JSONResponse(await run_sync(undo))

    async def missed(self, request: Request) -> Response:
        """Add or remove a cell that has no candidate."""
        by, body = _by(request), parse(MissedCell, await _body(request))
        if (body.zyx is None) == (body.remove is None):
            raise Refusal(422, "give zyx, a place, or remove, a missed cell's id")
        if body.zyx is not None:
            inside = all(-0.5 <= at < n - 0.5 for at, n in zip(body.zyx, self.volume.shape_zyx, strict=True))
            if not inside:
                raise Refusal(422, f"z, y, x = {body.zyx} lies outside the volume {self.volume.shape_zyx}")
            await run_sync(self.session.add_missed, by, body.id, body.zyx)
        else:
            await run_sync(self.session.remove_missed, by, body.id, str(body.remove))
        return JSONResponse({"missed": len(self.session.clicks.missed)})

    async def crops(self, request: Request) -> Response:
        """Raw voxels around rows, (n, z, y, x) as .npy."""
        text = request.query_params.get("rows", "")
        rows = [int(part) for part in text.split(",") if part.isdigit() and len(part) < 12]
        if not 1 <= len(rows) <= MOST_ROWS or max(rows) >= len(self.session.candidates):
            most = len(self.session.candidates) - 1
            raise Refusal(422, f"rows is {text[:60]!r}; expected 1 to {MOST_ROWS} numbers from 0 to {most}")
        zyx = self.session.candidates.zyx[rows]
        return _array(await run_sync(crops_at, self.volume, zyx, self.size))

    async def plane(self, request: Request) -> Response:
        """One plane around a place, (1, y, x) as .npy."""
        return _array(await run_sync(plane_at, self.volume, self._place(request)))

    async def near(self, request: Request) -> Response:
        """Candidates and missed cells around a place, for the surroundings."""
        centre, by = np.array(self._place(request)), _by(request)
        reach = np.array([self.size[0], PLANE / 2, PLANE / 2])
        zyx = self.session.detections_zyx
        rows = np.flatnonzero((np.abs(zyx - centre) <= reach).all(axis=1))[:NEAR].tolist()
        same = zyx is self.session.candidates.zyx
        answers = self.session.clicks.labels[by] if same else {}
        missed = [
            {"id": cell.identity, "zyx": list(cell.zyx), "by": cell.by}
            for cell in list(self.session.clicks.missed.values())
            if (np.abs(np.array(cell.zyx) - centre) <= reach).all()
        ]
        candidates = [{"row": row, "zyx": zyx[row].tolist(), "label": answers.get(row)} for row in rows]
        return JSONResponse({"candidates": candidates, "missed": missed})

    def _next(self, by: str, order: Any) -> dict[str, Any]:
        rows = self.session.queue(by, QUEUE, order)
        return {"queue": [self._row(row) for row in rows], "progress": self.session.progress(by)}

    def _row(self, row: int) -> dict[str, Any]:
        place = {"row": row, "zyx": self.session.candidates.zyx[row].tolist()}
        return place | {"box": self.session.box_of(row)}

    def _place(self, request: Request) -> list[float]:
        try:
            place = [float(request.query_params[axis]) for axis in "zyx"]
        except (KeyError, ValueError) as problem:
            raise Refusal(422, "a place is given by z, y and x, numbers in voxels") from problem
        if not all(-1 <= at <= size for at, size in zip(place, self.volume.shape_zyx, strict=True)):
            raise Refusal(422, f"z, y, x = {place} lies outside the volume {self.volume.shape_zyx}")
        return place


async def _body(request: Request) -> bytes:
    body = await request.body()
    if len(body) > MOST_BODY:
        raise Refusal(413, f"{len(body)} bytes for one answer; {MOST_BODY} are the most")
    return body


def _by(request: Request) -> str:
    return str(request.scope.get(HOLDER, "")) or ALONE


def _order(request: Request) -> Any:
    order = request.query_params.get("order", "")
    if not order:
        return None
    if order not in ORDERS:
        raise Refusal(422, f"the order is {order[:40]!r}; expected one of {', '.join(ORDERS)}")
    return order


def _whole(request: Request, name: str, least: int, most: int) -> int:
    text = request.query_params.get(name, "")
    if not text.isdigit() or len(text) > 9 or not least <= int(text) <= most:
        raise Refusal(422, f"{name} is {text[:40]!r}; expected a whole number from {least} to {most}")
    return int(text)


def _array(voxels: np.ndarray) -> Response:
    return Response(npy.dump(voxels), media_type=npy.MEDIA_TYPE, headers={"Cache-Control": "no-store"})


def _handler(refusal_of: Callable[[Any], Refusal]) -> Callable[[Request, Any], Awaitable[Response]]:
    async def handle(request: Request, problem: Any) -> Response:
        return refusal_of(problem).response()

    return handle


_refusal = _handler(lambda problem: problem)
_canvas_error = _handler(refused)
