"""Widget: the review of candidates in the viewer; every click is on the disk at once."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from magicgui.widgets import ComboBox, Container, FileEdit, LineEdit, PushButton
from napari.layers import Image
from napari.layers import Points as PointsLayer

from canvas_fm.errors import CanvasError, counted
from canvas_fm.heads.review.order import ORDERS
from canvas_fm.heads.review.review_flags import ReviewOptions
from canvas_fm.heads.review.review_state import CELL, OTHER, UNSURE
from canvas_fm.heads.review.session import ReviewSession
from canvas_fm.napari.background import BackgroundWork, shows_errors, text_label
from canvas_fm.napari.layers import METADATA, OPEN_CIRCLE, points_layer, points_of, volume_of
from canvas_fm.napari.widgets.choices import LayerChoice
from canvas_fm.pipeline.background_learner import BackgroundLearner, open_review

_KEYS = {"c": CELL, "n": OTHER, "u": UNSURE}
_CURSOR = "under review"


class ReviewWidget(Container):
    """`canvas-fm review` in the viewer: the same click log, orders, model and files of labels."""

    def __init__(self, napari_viewer: Any) -> None:
        self._viewer = napari_viewer
        self.image = LayerChoice(napari_viewer, Image, "Volume")
        self.cells = LayerChoice(napari_viewer, PointsLayer, "Candidates")
        self.out = FileEdit(label="Labels", mode="w", value=Path("labels.csv"), filter="*.csv")
        self.annotator = LineEdit(label="Who clicks", value="me")
        self.order = ComboBox(label="Order", choices=ORDERS, value="uncertain")
        self.start, self.end = PushButton(text="Start"), PushButton(text="End, write labels", enabled=False)
        self.cell, self.other, self.unsure, self.back = self.answers = [
            PushButton(text=text, enabled=False)
            for text in ("Cell (C)", "Not a cell (N)", "Unsure (U)", "Back (B)")
        ]
        self.missed = PushButton(text="Add a missed cell at the cursor (M)", enabled=False)
        self.progress = text_label()
        self.work = BackgroundWork()
        fields = Container(widgets=[self.image, self.cells, self.out, self.annotator, self.order])
        answers = Container(widgets=self.answers, layout="horizontal", labels=False)
        super().__init__(
            widgets=[fields, self.start, answers, self.missed, self.progress, self.end, self.work],
            labels=False,
        )
        self.session: ReviewSession | None = None
        self._learner: BackgroundLearner | None = None
        self._row, self._by = -1, ""
        self.start.changed.connect(lambda *_: self.begin())
        self.end.changed.connect(lambda *_: self.finish())
        for button, label in zip(self.answers, (CELL, OTHER, UNSURE), strict=False):
            button.changed.connect(lambda _, label=label: self.answer(label))
        self.back.changed.connect(lambda *_: self.take_back())
        self.missed.changed.connect(lambda *_: self.add_missed())
        self.native.destroyed.connect(lambda *_: self.finish(shown=False))

    @shows_errors
    def begin(self) -> None:
        """Open the review in a thread, gone on with where the file has clicks already."""
        if self.session is not None:
            raise CanvasError("a review is open; end it first")
        image = self.image.layer
        candidates = points_of(self.cells.layer, image)
        options = ReviewOptions.of(annotator=(self.annotator.value,), order=self.order.value)
        out, self._by = Path(self.out.value), self.annotator.value

        def done(opened: tuple[Any, Any]) -> None:
            self.session, features = opened
            self._learner = BackgroundLearner(self.session, features)
            self._learner.start()
            self._like = image
            self._enable(True)
            self._next()

        self.work.run("opening", lambda: open_review(volume_of(image), candidates, out, options), done)

    def answer(self, label: int) -> None:
        """Record the answer for the candidate that is shown, and show the next."""
        if self.session is not None and self._row >= 0:
            self.session.answer(self._by, uuid.uuid4().hex, [self._row], label)
            self._next()

    def take_back(self) -> None:
        """Take the last answer back and show its candidate again."""
        if self.session is not None:
            rows = self.session.back(self._by, uuid.uuid4().hex)
            self._next(rows[0] if rows else None)

    def add_missed(self) -> None:
        """Record a cell at the cursor that has no candidate."""
        if self.session is not None:
            zyx = [float(value) for value in self._like.world_to_data(self._viewer.cursor.position)]
            shape = (self._like.data[0] if self._like.multiscale else self._like.data).shape
            if all(-0.5 <= at < n - 0.5 for at, n in zip(zyx, shape, strict=True)):
                self.session.add_missed(self._by, uuid.uuid4().hex, zyx)
                self._show_progress()

    def finish(self, *, shown: bool = True) -> None:
        """End the review: the labels are written, and become a points layer."""
        if self.session is None:
            return
        session, self.session = self.session, None
        if self._learner is not None:
            self._learner.stop()
        labels = session.labels()
        session.close()
        if shown:
            self._enable(False)
            data, about, _ = points_layer(labels, "labels", self._like)
            colours = {CELL: "#009e73", OTHER: "#d55e00", UNSURE: "#999999"}
            about["border_color"] = [colours[label] for label in labels.columns["label"].tolist()]
            self._viewer.add_points(data, **about)
            self.work.say(f"labels are in {session.out}")

    def _enable(self, on: bool) -> None:
        for button in (*self.answers, self.missed, self.end):
            button.enabled = on
        self.start.enabled = not on
        actions: dict[str, Any] = {
            key: lambda _, label=label: self.answer(label) for key, label in _KEYS.items()
        }
        actions |= {"b": lambda _: self.take_back(), "m": lambda _: self.add_missed()}
        for key, action in actions.items():
            self._viewer.bind_key(key, action if on else None, overwrite=True)

    def _next(self, row: int | None = None) -> None:
        assert self.session is not None
        queue = [row] if row is not None else self.session.queue(self._by, 1)
        self._row = queue[0] if queue else -1
        if self._row >= 0:
            self._look_at(self.session.candidates.zyx[self._row])
        self._show_progress()

    @property
    def _camera(self) -> Any:
        """The viewer's camera; napari before 0.9 has no scene that holds it."""
        return getattr(self._viewer, "scene", self._viewer).camera

    def _look_at(self, zyx: Any) -> None:
        """Move the viewer to a candidate, which a ring marks."""
        place = self._like.data_to_world(zyx)
        self._viewer.dims.set_point(range(3), place)
        self._camera.center = place
        if _CURSOR in self._viewer.layers:
            self._viewer.layers[_CURSOR].data = [zyx]
            return
        about = {key: getattr(self._like, key) for key in ("scale", "translate", "units")} | OPEN_CIRCLE
        about |= {"border_color": "yellow", "size": 24, "metadata": {METADATA: {"marker": True}}}
        self._viewer.add_points([zyx], name=_CURSOR, **about)
        self._camera.zoom = 400 / (64 * self._like.scale[-1])  # 64 voxels across some 400 pixels

    def _show_progress(self) -> None:
        assert self.session is not None
        now = self.session.progress(self._by)
        lines = [
            f"{now['mine']:,} of {now['candidates']:,} answered, "
            f"{counted(now['missed'], 'missed cell')} added"
        ]
        if self._row < 0:
            lines.append("all candidates are answered")
        if now["count"] is not None:
            value, low, high = now["count"]
            lines.append(
                f"{counted(round(value), 'cell')} among the candidates ({low:,.0f} to {high:,.0f}, 90 %)"
            )
        learned = now["learned"] or {}
        lines += [learned.get("sentence", ""), learned.get("curve", ""), now["stop"]]
        self.progress.value = "\n".join(filter(None, lines))
