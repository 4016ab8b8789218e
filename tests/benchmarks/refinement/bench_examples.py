"""Five cells as examples: are those that come first, in cubes that the encoder never saw, of the same marker?

    python -m tests.benchmarks.refinement.bench_examples ENCODER [--pool centre] [--backend openvino]

On the DELiVR cubes: c-Fos nuclei and microglia somata, all true cells of the labelled octants, without the
test cubes. A query takes five cells of one cube that the encoder was trained beside, and hits are asked for
in the cubes that its config names as held out. Beside the figures stand what chance would give and what the
same queries give on random weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from canvas_fm.data.points.boxes import inside_boxes, read_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.search.index.index import Index
from canvas_fm.models.encoder.random_encoder import random_encoder
from canvas_fm.models.load_model import Encoder, load
from tests.benchmarks.timing import show
from tests.support.real_data import ABSENT, REAL_DATA

FOLDERS = {"c-Fos": "delivr_cFos", "microglia": "delivr_microglia"}
TEST = ("6003", "7082", "9758")  # looked at once, when all is chosen
EXAMPLES, K = 5, 50


class Cube(NamedTuple):
    marker: str
    volume: Volume
    cells: Points


def cubes() -> dict[str, Cube]:
    """The labelled cubes by name, each with its true cells where they are labelled."""
    found = {}
    for marker, folder in FOLDERS.items():
        for path in sorted((REAL_DATA / folder).iterdir()):
            if path.name not in TEST and (path / "centroids.csv").is_file():
                zyx = Points.read(path / "centroids.csv").zyx
                zyx = zyx[inside_boxes(zyx, read_boxes(path / "meta.json"))]
                points = Points(zyx, {"kind": np.full(len(zyx), marker)}, {})
                found[path.name] = Cube(marker, Volume.open(path / "raw.zarr"), points)
    return found


def right(encoder: Encoder, known: dict[str, Cube], held_out: set[str], asked: argparse.Namespace) -> dict:
    """For each marker, whether each hit of each query is of the marker of its examples: (queries, K)."""
    settings = {"pool": asked.pool, "backend": asked.backend, "precision": asked.precision, "show": False}
    with tempfile.TemporaryDirectory() as name:
        stores = [
            embed_to_store(encoder, cube.volume, cube.cells, Path(name) / f"{key}.emb.zarr", **settings)
            for key, cube in known.items()
        ]
        index = Index.build(stores, Path(name) / "cells.index", show=False)
        where = [f"brain={','.join(sorted(held_out))}"]
        rng, found = np.random.default_rng(0), {}
        for marker in FOLDERS:
            sources = [key for key, cube in known.items() if cube.marker == marker and key not in held_out]
            found[marker] = np.zeros((asked.queries, K), bool)
            for query in range(asked.queries):
                source = sources[query % len(sources)]
                some = rng.choice(len(known[source].cells), EXAMPLES, replace=False)
                hits = index.like([f"{source}:{row}" for row in some], k=K, where=where)
                kinds = [line["kind"] for line in index.describe(hits.rows.reshape(-1))]
                found[marker][query] = [kind == marker for kind in kinds]
        return found


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", nargs="?", help="a trained encoder's folder")
    parser.add_argument("--pool", help="default: the encoder's own")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--queries", type=int, default=100, help="of each marker; default 100")
    asked = parser.parse_args(arguments)
    if asked.encoder is None or not REAL_DATA.is_dir():
        print(f"\nExamples: left out; {'give a trained encoder' if asked.encoder is None else ABSENT}")
        return
    encoder, known = load(asked.encoder, kind="encoder"), cubes()
    held_out = {name for name in encoder.config.provenance.get("held_out", []) if name in known}
    if {known[name].marker for name in held_out} != set(FOLDERS):
        print(f"\nExamples: left out, {encoder.name} was not trained without a cube of each marker")
        return
    mine = right(encoder, known, held_out, asked)
    none = right(random_encoder(encoder.config), known, held_out, asked)
    there = dict.fromkeys(FOLDERS, 0)
    for name in held_out:
        there[known[name].marker] += len(known[name].cells)
    rows = []
    for marker in FOLDERS:
        for title, hits, other in (
            ("first hit", mine[marker][:, 0], none[marker][:, 0]),
            ("ten hits, most of them", mine[marker][:, :10].sum(1) > 5, none[marker][:, :10].sum(1) > 5),
            (f"{K} hits, each of them", mine[marker], none[marker]),
        ):
            chance = there[marker] / sum(there.values())
            beside = f"random weights {other.mean():.3f}, of all cells {chance:.3f} are"
            rows.append((f"{marker}: {title}", f"{hits.mean():.3f} right", beside))
    cells = ", ".join(f"{count:,} {marker}" for marker, count in there.items())
    title = f"Five examples, {encoder.name}, pool {asked.pool or encoder.config.pool}"
    show(f"{title}: {asked.queries} queries a marker among {cells} of {', '.join(sorted(held_out))}", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
