"""A review under way: the queue of each annotator, answers, progress, and the files of labels."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from canvas_fm.data.points.points import SCORE_COLUMNS, Points
from canvas_fm.errors import BadInput
from canvas_fm.heads.review.agreement import agreement
from canvas_fm.heads.review.audit.clicked_count import clicked_count, random_clicks
from canvas_fm.heads.review.click_log import ClickLog
from canvas_fm.heads.review.learn_from_clicks import Learned
from canvas_fm.heads.review.order import (
    ORDERS,
    RANDOM_EVERY,
    Order,
    disagreement_order,
    diverse_order,
    first_order,
    random_order,
    uncertain_order,
)
from canvas_fm.heads.review.review_state import CELL, OPEN, OTHER, UNSURE, Clicks

_BLOCK = 1024  # rows of an order that become Python's numbers at once: few of a million are looked at
ENOUGH = 0.03  # half-width of the count's interval at which a review may stop


class ReviewSession:
    """Candidates under review by some annotators; safe to use from several threads.

    `p_cell` is what is expected of each candidate (None: by the rank of its score), `groups` what a diverse
    order spreads over. Every answer is on the disk before it counts.
    """

    def __init__(
        self,
        candidates: Points,
        out: str | Path,
        annotators: Sequence[str],
        *,
        order: Order = "uncertain",
        p_cell: Float64[np.ndarray, " n"] | None = None,
        threshold: float = 0.5,
        groups: Shaped[np.ndarray, " n"] | None = None,
        seed: int = 0,
    ) -> None:
        self.candidates, self.out, self.annotators, self.seed = candidates, Path(out), tuple(annotators), seed
        self.order: Order = order
        self.groups = np.zeros(len(candidates), np.int64) if groups is None else groups
        self.permutation = random_order(len(candidates), seed)
        self.learned: Learned | None = None
        self.failure = ""  # why nothing more is learned from clicks
        self.detector: dict[str, str] | None = None  # what the detector gained that is adapted to the answers
        self._stated, self._threshold = p_cell, threshold
        self._share_below: Float64[np.ndarray, " n"] | None = None  # of candidates with a lower score
        self._lock = threading.RLock()
        self._orders: dict[tuple[str, str], Int64[np.ndarray, " n"]] = {}
        self.click_log = ClickLog(self.out.with_name(self.out.name + ".clicks.jsonl"), candidates)
        self.clicks = Clicks.replayed(self.click_log.events)

    @property
    def score(self) -> Float64[np.ndarray, " n"] | None:
        """The candidates' own score, where they have one."""
        for name in SCORE_COLUMNS:
            values = self.candidates.columns.get(name)
            if values is not None and values.dtype.kind in "iuf":
                return values.astype(np.float64)
        return None

    @property
    def p_cell(self) -> Float64[np.ndarray, " n"]:
        """P(cell): learned, else stated, else the rank of the score."""
        if self.learned is not None:
            return self.learned.p_cell
        if self._stated is not None:
            return self._stated
        n, score = len(self.candidates), self.score
        if score is None:
            return np.full(n, 0.5)
        if self._share_below is None:
            self._share_below = (np.argsort(np.argsort(score, kind="stable"), kind="stable") + 0.5) / n
        return self._share_below

    def take(self, learned: Learned) -> None:
        """Use newly learned probabilities from here on."""
        with self._lock:
            self.learned, self._threshold = learned, learned.threshold
            self._orders.clear()

    def queue(self, by: str, count: int, order: Order | None = None) -> list[int]:
        """The next rows of an annotator; one in five is of the random order."""
        self._check(by)
        with self._lock:
            order = order or self.order
            done = self.clicks.labels[by]
            ranked, drawn = _rows(self._ranked(order, by)), _rows(self.permutation)
            queue: list[int] = []
            taken = set(done)
            while len(queue) < count and len(taken) < len(self.candidates):
                at_random = (len(done) + len(queue)) % RANDOM_EVERY == RANDOM_EVERY - 1
                row = next((row for row in (drawn if at_random else ranked) if row not in taken), None)
                if row is None:
                    continue
                queue.append(row)
                taken.add(row)
            return queue

    @property
    def detections_zyx(self) -> Float64[np.ndarray, "n 3"]:
        """Everything that was detected, which surroundings show."""
        return self.candidates.zyx

    def box_of(self, row: int) -> list[int] | None:
        """Corners of a row that is a box to be searched; a candidate has none."""
        return None

    def batch(self, by: str, label: int, count: int) -> list[int]:
        """Open rows that are most surely cells, or most surely none, to be looked at as a grid."""
        self._check(by)
        with self._lock:
            done = self.clicks.labels[by]
            key = ("grid", str(label))
            if key not in self._orders:
                self._orders[key] = np.argsort(
                    -self.p_cell if label == CELL else self.p_cell, kind="stable"
                ).astype(np.int64)
            return list(islice((row for row in _rows(self._orders[key]) if row not in done), count))

    def answer(self, by: str, identity: str, rows: Sequence[int], label: int) -> None:
        """Record a label of rows; the same identity twice counts once."""
        if label not in (CELL, OTHER, UNSURE):
            raise BadInput(f"the label is {label}; expected 1 (a cell), 0 (none) or -1 (unsure)")
        if not rows or not all(0 <= row < len(self.candidates) for row in rows):
            raise BadInput(f"rows go from 0 to {len(self.candidates) - 1}; {len(rows)} were given")
        self._record(by, identity, {"rows": [int(row) for row in rows], "label": int(label)})

    def answer_each(self, by: str, identity: str, labels: dict[int, int]) -> None:
        """Record the answers of a grid, one event for each label."""
        for label in sorted(set(labels.values())):
            rows = [row for row, value in labels.items() if value == label]
            self.answer(by, f"{identity}:{label}", rows, label)

    def back(self, by: str, identity: str) -> list[int]:
        """Take the last answer back; returns its rows."""
        with self._lock:
            rows = self.clicks.last_rows(by)
            if rows:
                self._record(by, identity, {"undo": True})
            return rows

    def add_missed(self, by: str, identity: str, zyx: Sequence[float]) -> None:
        """Record a cell without a candidate."""
        self._record(by, identity, {"add": [float(value) for value in zyx]})

    def remove_missed(self, by: str, identity: str, missed: str) -> None:
        """Take a missed cell back."""
        self._record(by, identity, {"remove": missed})

    def progress(self, by: str) -> dict[str, Any]:
        """Counts of answers, agreement, the count's interval and what the model says, for the page."""
        with self._lock:
            answers = list(self.clicks.labels[by].values())
            label = self.clicks.label(len(self.candidates))
            sample = random_clicks(self.permutation, label)
            count = clicked_count(label, sample, None if self.learned is None else self.p_cell)
            shown: dict[str, Any] = {
                "mine": len(answers),
                "mine_by_label": {str(kind): answers.count(kind) for kind in (CELL, OTHER, UNSURE)},
                "answered": int((label > OPEN).sum()),
                "candidates": len(label),
                "random": len(sample),
                "missed": len(self.clicks.missed),
                "agreement": agreement(self.clicks.labels),
                "learned": self._about_model(),
                "detector": self.detector,
                "count": None if count is None else list(count),
                "half_width": None,
                "stop": "",
            }
            if count is not None and count.value > 0:
                half = (count.high - count.low) / 2 / count.value
                shown["half_width"] = half
                shown["stop"] = (
                    f"the count's interval is now ± {half:.0%}; you may stop"
                    if half <= ENOUGH
                    else f"the count's interval is now ± {half:.0%}"
                )
            return shown

    def _about_model(self) -> dict[str, Any] | None:
        """Status of the model, or why there is no newer one."""
        about = None if self.learned is None else self.learned.as_dict()
        if not self.failure:
            return about
        return (about or {"curve": ""}) | {"sentence": f"nothing more is learned from clicks: {self.failure}"}

    def answers(self) -> Int64[np.ndarray, " n"]:
        """Label of every candidate: 1, 0, -1 unsure or undecided, -2 open."""
        with self._lock:
            return self.clicks.label(len(self.candidates))

    def labels(self) -> Points:
        """All candidates with `label` (1, 0; -1 unsure or open); of several annotators each has a column."""
        with self._lock:
            n = len(self.candidates)
            columns = {
                name: values
                for name, values in self.candidates.columns.items()
                if name != "label" and not name.startswith("label_")
            }
            columns["label"] = np.maximum(self.clicks.label(n), UNSURE)
            if len(self.clicks.labels) > 1:
                for name, of in self.clicks.labels.items():
                    own = np.full(n, UNSURE, np.int64)
                    own[list(of)] = list(of.values())
                    columns[f"label_{name}"] = own
            return Points(self.candidates.zyx, columns, self.candidates.meta)

    def write(self) -> None:
        """Write the labels, and the missed cells as OUT's stem with `_missed`."""
        self.labels().write(self.out)
        with self._lock:
            missed = list(self.clicks.missed.values())
        if missed:
            zyx = np.array([cell.zyx for cell in missed])
            by = np.array([cell.by for cell in missed])
            Points(zyx, {"annotator": by}, self.candidates.meta).write(
                self.out.with_name(f"{self.out.stem}_missed.csv")
            )

    def close(self) -> None:
        """Write the labels and let the click log go."""
        self.write()
        self.click_log.close()

    def _record(self, by: str, identity: str, event: dict[str, Any]) -> None:
        self._check(by)
        with self._lock:
            if identity in self.clicks.seen:
                return
            event = {"id": identity, "t": datetime.now(UTC).isoformat(timespec="seconds"), "by": by, **event}
            self.click_log.append(event)
            self.clicks.apply(event)

    def _ranked(self, order: Order, by: str) -> Int64[np.ndarray, " n"]:
        if order not in ORDERS:
            raise BadInput(f"the order is {order!r}; expected one of {', '.join(ORDERS)}")
        if order == "random":
            return self.permutation
        key = ("", "") if order == "disagreement" else (order, "")
        if key not in self._orders:
            p = self.p_cell
            if self.learned is None and self._stated is None:
                rank = first_order(self.score, len(p), self.seed)
            else:
                rank = uncertain_order(p, self._threshold, self.seed)
            self._orders[key] = diverse_order(self.groups, rank, self.seed) if order == "diverse" else rank
        if order == "disagreement":  # which changes with what others answer
            return disagreement_order(self.clicks.labels, by, self._orders[key], self.p_cell)
        return self._orders[key]

    def _check(self, by: str) -> None:
        if by not in self.annotators:
            raise BadInput(f"{by!r} is no annotator of this review; there are {', '.join(self.annotators)}")


def _rows(order: Int64[np.ndarray, " n"]) -> Iterator[int]:
    """The rows of an order, one by one."""
    for start in range(0, len(order), _BLOCK):
        yield from order[start : start + _BLOCK].tolist()
