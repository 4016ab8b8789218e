"""The state of a review, replayed from its click log: answers of each annotator, and missed cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64

CELL, OTHER, UNSURE, OPEN = 1, 0, -1, -2


@dataclass
class Missed:
    """A cell without a candidate, added by an annotator."""

    identity: str
    by: str
    zyx: tuple[float, float, float]


@dataclass
class Clicks:
    """Answers by annotator and row, the last one counts; `seen` are the ids of all events."""

    labels: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    missed: dict[str, Missed] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    _history: dict[str, list[tuple[str, dict[int, int | None]]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    @classmethod
    def replayed(cls, events: Iterable[Mapping[str, Any]]) -> Clicks:
        clicks = cls()
        for event in events:
            clicks.apply(event)
        return clicks

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take one event in: `rows` with a `label`, `add` or `remove` of a missed cell, or `undo`."""
        self.seen.add(event["id"])
        by = event["by"]
        if "rows" in event:
            own = self.labels[by]
            self._history[by].append((event["id"], {row: own.get(row) for row in event["rows"]}))
            own.update(dict.fromkeys(event["rows"], event["label"]))
        elif "add" in event:
            z, y, x = event["add"]
            self.missed[event["id"]] = Missed(event["id"], by, (z, y, x))
        elif "remove" in event:
            self.missed.pop(event["remove"], None)
        elif "undo" in event and self._history[by]:
            _, before = self._history[by].pop()
            for row, label in before.items():
                if label is None:
                    self.labels[by].pop(row, None)
                else:
                    self.labels[by][row] = label

    def last_rows(self, by: str) -> list[int]:
        """Rows of the annotator's last answer, which `undo` takes back."""
        return list(self._history[by][-1][1]) if self._history[by] else []

    def label(self, n: int) -> Int64[np.ndarray, " n"]:
        """Label of each of n rows by majority of the sure ones; -1 unsure or undecided, -2 open."""
        votes = np.zeros(n, np.int64)
        answered = np.zeros(n, bool)
        for of in self.labels.values():
            if of:
                rows = np.fromiter(of.keys(), np.int64, len(of))
                values = np.fromiter(of.values(), np.int64, len(of))
                answered[rows] = True
                votes[rows] += np.where(values == CELL, 1, np.where(values == OTHER, -1, 0))
        return np.where(~answered, OPEN, np.where(votes > 0, CELL, np.where(votes < 0, OTHER, UNSURE)))
