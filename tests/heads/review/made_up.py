"""A volume's detections of which some are cells, and cells that were missed, to be audited by simulation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from canvas_fm.data.points.boxes import inside_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.heads.review.audit.answers import audit_of
from canvas_fm.heads.review.audit.audit_flags import AuditOptions
from canvas_fm.heads.review.audit.estimate import Audit
from canvas_fm.heads.review.audit.sample import ANSWER, BOX, CORNERS, KIND, draw_audit

SHAPE, VOXEL_UM = (200, 500, 500), (5.0, 2.0, 2.0)


class Population(NamedTuple):
    """All detections, which of them are cells, and where the missed cells lie."""

    cells: Points
    true: np.ndarray
    missed_zyx: np.ndarray

    @property
    def count(self) -> int:
        return int(self.true.sum()) + len(self.missed_zyx)


def population(seed: int, n: int, precision: float, missed: int, clumps: int) -> Population:
    """n detections around `clumps` places, scored so that higher ones are cells more often."""
    random = np.random.default_rng(seed)
    places = random.uniform(0, 1, (clumps, 3)) * SHAPE

    def near(count: int) -> np.ndarray:
        at = places[random.integers(0, clumps, count)] + random.normal(0, 1, (count, 3)) * (20, 50, 50)
        return np.mod(at, SHAPE) * 0.999

    score = random.beta(2, 1, n)
    p = np.clip(precision + (score - score.mean()), 0.01, 0.995)
    return Population(Points(near(n), {"score": score}), random.random(n) < p, near(missed))


def audited(of: Population, **options: object) -> Audit:
    """Draw an audit, answer it by what is known, and estimate."""
    table = draw_audit(of.cells, SHAPE, VOXEL_UM, AuditOptions.of(**options))
    true = {tuple(row): int(cell) for row, cell in zip(of.cells.zyx.tolist(), of.true, strict=True)}
    box = table.columns[KIND] == BOX
    answers = [str(true[tuple(row)]) for row in table.zyx[~box].tolist()]
    corners = np.stack([table.columns[name][box].astype(int) for name in CORNERS], axis=1)
    answers += [str(int(inside_boxes(of.missed_zyx, corner[None]).sum())) for corner in corners]
    return audit_of(Points(table.zyx, table.columns | {ANSWER: np.array(answers)}), of.cells)
