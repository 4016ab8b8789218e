"""Search at a million vectors: recall@10 and time beside the exact scan, what adding costs, and memory.

With embeddings of real cells, `python -m tests.benchmarks.models.bench_search ROWS X.emb.zarr …`, these are
repeated
with noise that is as long as the way from a cell to its nearest and has the spread of the cells. Without, the
vectors lie in clumps as those of an encoder do: centres of 64 dimensions turned into 384, with noise in all
of them. The stored vectors always decide, so recall is all that lists can cost.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.inference.embed.store.embedding_store import Embeddings, write_store
from canvas_fm.inference.search.index.index import Index
from canvas_fm.inference.search.inverted_lists import propose_exactly
from tests.benchmarks.timing import show

DIM, PER_STORE, QUERIES = 384, 100_000, 200


class Clumps:
    """Made-up vectors; the same seed gives the same ones."""

    def __call__(self, rows: int, seed: int) -> np.ndarray:
        shared = np.random.default_rng(0)
        centres = shared.normal(size=(2000, 64)).astype(np.float32)
        turn = shared.normal(size=(64, DIM)).astype(np.float32) / 8
        rng = np.random.default_rng(seed)
        spread = 0.5 * rng.normal(size=(rows, 64)).astype(np.float32)
        inner = centres[rng.integers(0, len(centres), rows)] + spread
        return inner @ turn + 0.1 * rng.standard_normal((rows, DIM), np.float32)


class Repeated:
    """Real embeddings drawn again and again, each time with other noise."""

    def __init__(self, paths: Sequence[str]) -> None:
        import faiss

        self.cells = np.concatenate([Embeddings.open(path).vectors for path in paths])
        some = self.cells[np.random.default_rng(0).permutation(len(self.cells))[:5000]]
        nearest = np.sqrt(np.median(faiss.knn(some, self.cells, 2)[0][:, 1]))
        centred = some - some.mean(axis=0)
        values, turn = np.linalg.eigh(centred.T @ centred / len(some))
        scale = np.sqrt(np.maximum(values, 0))
        self.noise = ((turn * scale).T * nearest / np.linalg.norm(scale)).astype(np.float32)

    def __call__(self, rows: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        drawn = self.cells[rng.integers(0, len(self.cells), rows)]
        return drawn + rng.standard_normal((rows, self.cells.shape[1]), np.float32) @ self.noise


def stores(folder: Path, rows: int, vectors_of: Callable[[int, int], np.ndarray]) -> list[Embeddings]:
    out = []
    for number, first in enumerate(range(0, rows, PER_STORE)):
        count = min(PER_STORE, rows - first)
        about = {"encoder_sha256": "ab" * 32, "encoder": "none", "pool": "mean", "precision": "fp32"}
        about |= {"volume": f"brain{number}", "marker": "NeuN", "voxel_um": [4, 1.8, 1.8], "window": [0, 1]}
        path = folder / f"brain{number}.emb.zarr"
        points = Points(np.zeros((count, 3)), {"score": np.random.default_rng(number).random(count)})
        write_store(path, vectors_of(count, number + 1), points, about | {"inputs": {"seed": number}})
        out.append(Embeddings.open(path))
    return out


def timed(index: Index, queries: np.ndarray, **options) -> tuple[float, float]:
    """p50 and p99 in milliseconds of one query at a time, after ten to warm up."""
    taken = []
    for query in [*queries[:10], *queries]:
        begun = time.perf_counter()
        index.search(query, 10, **options)
        taken.append(1000 * (time.perf_counter() - begun))
    taken = sorted(taken[10:])
    return statistics.median(taken), taken[int(0.99 * len(taken))]


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)


def main(rows: int = 1_000_000, paths: Sequence[str] = ()) -> None:
    vectors_of = Repeated(paths) if paths else Clumps()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = stores(folder, rows + PER_STORE, vectors_of)
        before = peak_mb()
        begun = time.perf_counter()
        index = Index.build(made[:-1], folder / "x.index", show=False)
        built = time.perf_counter() - begun
        built_mb = peak_mb()
        queries = vectors_of(QUERIES, 10_001)  # drawn alike, none of them indexed
        begun = time.perf_counter()
        truth = index._near.decide(
            index.check_queries(queries), propose_exactly(index.parts, queries, 20), 10
        )
        scan_ms = 1000 * (time.perf_counter() - begun) / QUERIES
        found = index.search(queries, 10)
        recall = np.mean(
            [len({*a} & {*b}) / 10 for a, b in zip(found.rows.tolist(), truth[0].tolist(), strict=True)]
        )
        p50, p99 = timed(index, queries)
        few50, _ = timed(index, queries, where=["score>=0.9"])
        begun = time.perf_counter()
        index.add(made[-1], show=False)
        added = time.perf_counter() - begun
        size = sum(path.stat().st_size for path in (folder / "x.index").rglob("*") if path.is_file()) / 1e6
        lists = index.about["lists"] or {"nlist": 1, "nprobe": 1}
        show(
            f"Search, {rows:,} × {index.dim}, {type(vectors_of).__name__.lower()}: {index.structure}, "
            f"{lists['nprobe']} of {lists['nlist']} lists",
            [
                ("recall@10", f"{recall:.4f}", f"the index itself says {index.recall['value']:.4f}"),
                (
                    "one query, p50",
                    f"{p50:.2f} ms",
                    f"p99 {p99:.2f} ms; scanned together {scan_ms:.2f} ms each",
                ),
                ("one query among a tenth of the cells, p50", f"{few50:.2f} ms", f"{few50 / p50:.2f} of all"),
                ("building, measuring included", f"{built:.1f} s", f"{rows / built:,.0f} rows/s"),
                (f"adding {len(made[-1]):,}", f"{added:.1f} s", f"{len(made[-1]) / added:,.0f} rows/s"),
                (
                    "memory while building",
                    f"{built_mb:,.0f} MB",
                    f"{before:,.0f} MB before; vectors {rows * index.dim * 4 / 1e6:,.0f}",
                ),
                ("on the disk", f"{size:,.0f} MB", f"{size * 1e6 / len(index):,.0f} bytes a vector"),
            ],
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, sys.argv[2:])
