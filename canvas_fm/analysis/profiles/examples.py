"""Cells to look at: those nearest to each cluster's centre, and the most novel ones of each region."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from canvas_fm.analysis.profiles.compare import ProfileComparison
from canvas_fm.data.points.tables import write_table
from canvas_fm.inference.embed.store.embedding_store import Embeddings

PER_CLUSTER, PER_REGION = 10, 10


def write_examples(comparison: ProfileComparison, path: str | Path) -> int:
    """Write cells with kind (`cluster 3`, `novel`), brain, region, id, z, y, x; returns their number.

    Novel cells are of the second group, of regions that are tested.
    """
    study = comparison.study
    brain = np.concatenate([np.full(len(cells.rows), at) for at, cells in enumerate(study.brains)])
    within = np.concatenate([np.arange(len(cells.rows)) for cells in study.brains])
    region = np.concatenate([cells.region for cells in study.brains])
    cluster, to_centre = np.concatenate(comparison.cluster), np.concatenate(comparison.to_centre)
    distance = np.concatenate(comparison.distance)
    chosen: list[tuple[str, int]] = []
    for number in range(comparison.share.shape[2]):
        rows = np.flatnonzero(cluster == number)
        chosen += [(f"cluster {number}", int(row)) for row in rows[np.argsort(to_centre[rows])[:PER_CLUSTER]]]
    treated = study.of(comparison.second)[brain]
    for at in np.flatnonzero(comparison.tested):
        rows = np.flatnonzero(treated & (region == at))
        chosen += [("novel", int(row)) for row in rows[np.argsort(-distance[rows])[:PER_REGION]]]
    kinds, picked = [kind for kind, _ in chosen], np.array([row for _, row in chosen])
    stores = [Embeddings.open(cells.store) for cells in study.brains]
    rows_of = [study.brains[brain[row]].rows[within[row]] for row in picked]
    zyx = np.array([stores[brain[row]].zyx[at] for row, at in zip(picked, rows_of, strict=True)])
    table = {
        "kind": np.array(kinds),
        "brain": np.array([study.brains[brain[row]].brain for row in picked]),
        "group": np.array([study.brains[brain[row]].group for row in picked]),
        "region": np.array(study.regions, np.str_)[region[picked]],
        "id": np.array([str(stores[brain[row]].ids[at]) for row, at in zip(picked, rows_of, strict=True)]),
        **{axis: zyx[:, at] for at, axis in enumerate("zyx")},
        "distance_to_controls": distance[picked],
    }
    write_table(Path(path), table, {})
    return len(picked)
