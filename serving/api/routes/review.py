"""The review of `canvas-fm review` as routes of the service: its page is at `/ui/review/review.html`.

The annotators are the holders of the service's keys, or one called `me` where it has none.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import Options
from serving.api.description.endpoint import JSON, NPY, Content, Endpoint
from serving.api.review.routes import ALONE, Routes
from serving.core.core import Core
from serving.protocol.errors import Refusal, refused
from serving.protocol.review import Answer, Back, BatchQuery, CropsQuery, MissedCell, PlaceQuery, QueueQuery
from serving.protocol.settings import ServedReview

if TYPE_CHECKING:  # read when a review begins: the service starts without them
    from canvas_fm.heads.review.session import ReviewSession
    from canvas_fm.pipeline.background_learner import BackgroundLearner


@dataclass(frozen=True)
class HostedReview:
    """A review that the service runs: its routes, its clicks, and what learns from them."""

    routes: Routes
    session: ReviewSession
    learner: BackgroundLearner

    @classmethod
    def begin(cls, core: Core, served: ServedReview) -> HostedReview:
        """Open it, or go on where its labels are; CanvasError where volume and candidates do not fit."""
        from canvas_fm.data.points.points import Points
        from canvas_fm.heads.review.review_flags import ReviewOptions
        from canvas_fm.pipeline.background_learner import BackgroundLearner, open_review

        volume = core.volumes[served.volume]
        settings = core.require_ready()
        options = ReviewOptions.of(annotator=tuple(settings.keys) or (ALONE,))
        session, features = open_review(volume, Points.read(served.candidates), served.labels, options)
        learner = BackgroundLearner(session, features)
        learner.start()
        return cls(Routes(session, volume), session, learner)

    def end(self) -> None:
        """Write the labels and close the log of clicks."""
        self.learner.stop()
        self.session.close()


def _endpoint(
    method: str, name: str, replies: Content, query: type[Options] = Options, bodies: Content | None = None
) -> Endpoint:
    handler = getattr(Routes, name)

    async def answer(core: Core, request: Request) -> Response:
        hosted: HostedReview | None = request.app.state.review
        if hosted is None:
            raise Refusal(
                404, "nothing is reviewed here: the service was started without --review VOLUME=CANDIDATES"
            )
        try:
            response: Response = await handler(hosted.routes, request)
        except CanvasError as problem:
            raise refused(problem) from problem
        return response

    answer.__doc__ = inspect.getdoc(handler)
    path = "/review/" if name == "about" else f"/review/{name}"
    return Endpoint(method, path, answer, replies, query=query, bodies=bodies or {})


ROUTES = [
    _endpoint("GET", "about", {JSON: None}),
    _endpoint("GET", "queue", {JSON: None}, QueueQuery),
    _endpoint("GET", "batch", {JSON: None}, BatchQuery),
    _endpoint("GET", "crops", {NPY: None}, CropsQuery),
    _endpoint("GET", "plane", {NPY: None}, PlaceQuery),
    _endpoint("GET", "near", {JSON: None}, PlaceQuery),
    _endpoint("POST", "answers", {JSON: None}, QueueQuery, {JSON: Answer}),
    _endpoint("POST", "back", {JSON: None}, QueueQuery, {JSON: Back}),
    _endpoint("POST", "missed", {JSON: None}, bodies={JSON: MissedCell}),
]
