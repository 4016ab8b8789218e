"""An index of embeddings on disk: built and extended in place, searched memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64

from canvas_fm.errors import CanvasError, ModelMismatch, counted
from canvas_fm.inference.embed.store.embedding_store import Embeddings
from canvas_fm.inference.search.conditions import rows_where
from canvas_fm.inference.search.hits import Hits, padded, pooling_name, rising, without
from canvas_fm.inference.search.index.build import build
from canvas_fm.inference.search.index.cells import describe, rows_of
from canvas_fm.inference.search.index.index_store import check_files, gather, prepared, read_manifest
from canvas_fm.inference.search.nearest import NearestRows

if TYPE_CHECKING:
    from canvas_fm.models.load_model import Encoder


class Index:
    """An opened `X.index`; thread-safe, also while another process extends it.

    What was added after opening is seen by opening again.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.about = path, manifest
        self._near = NearestRows(path, manifest)
        self.parts = self._near.parts

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Open a finished index; CanvasError if it is none, DamagedStore if files were changed."""
        path = Path(path)
        manifest = read_manifest(path)
        check_files(path, manifest)
        return cls(path, manifest)

    @classmethod
    def build(
        cls,
        embeddings: Sequence[Embeddings | str | Path] | Embeddings | str | Path,
        out: str | Path,
        *,
        metric: str = "cosine",
        show: bool | None = None,
    ) -> Index:
        """Index one or several embeddings stores of one encoder and open the result.

        The same call again goes on after a kill; where `out` is there already, what it does not hold yet is
        added. Up to 200 k rows are searched exactly, up to 20 M by inverted lists of 8-bit codes, beyond by
        1-bit codes; the stored vectors always decide. Raises ModelMismatch for stores of another encoder
        or pooling, CanvasError for another metric than `out` has.
        """
        single = isinstance(embeddings, Embeddings | str | Path)
        build([embeddings] if single else list(embeddings), Path(out), metric=metric, show=show)  # type: ignore[list-item, arg-type]
        return cls.open(out)

    def add(self, embeddings: Embeddings | str | Path, *, show: bool | None = None) -> Index:
        """Add a store's rows, skipping those it has; returns the extended index."""
        build([embeddings], self.path, metric=self.metric, show=show)
        return Index(self.path, read_manifest(self.path))

    def __len__(self) -> int:
        return int(self.about["rows"])

    @property
    def dim(self) -> int:
        """Dimension of a vector."""
        return int(self.about["dim"])

    @property
    def metric(self) -> str:
        """Metric: `cosine` or `l2`."""
        return str(self.about["metric"])

    @property
    def encoder_sha256(self) -> str:
        """Identity of the encoder of the vectors."""
        return str(self.about["encoder_sha256"])

    @property
    def pool(self) -> str:
        """Pooling of the vectors: `mean`, `contrast`, `cls` or `centre`."""
        return str(self.about["pool"])

    @property
    def layer(self) -> int | None:
        """Number of encoder blocks before the output; None for all."""
        return None if self.about["layer"] is None else int(self.about["layer"])

    @property
    def structure(self) -> str:
        """Index structure: `flat`, `ivf-sq8` or `ivf-rabitq`."""
        return "flat" if self._near.lists is None else self._near.lists.kind

    @property
    def recall(self) -> dict[str, Any]:
        """Measured recall@10: `value`, number of `queries`, `rows` at the time."""
        return dict(self.about["recall"])

    def verify(self) -> int:
        """Verify every file against the manifest; returns their number, raises DamagedStore."""
        return check_files(self.path, self.about, all_bytes=True)

    def vectors(self, rows: Int64[np.ndarray, " r"]) -> Float32[np.ndarray, "r d"]:
        """Stored vectors of some rows, of length 1 where the metric is cosine."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise CanvasError(f"rows go from {rows.min()} to {rows.max()}; the index has {len(self)} rows")
        return gather(self.parts, rows, self.dim)

    def describe(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """For each row: `row`, `id`, `brain`, `marker`, `z`, `y`, `x` and the point's columns."""
        return describe(self.parts, np.asarray(rows, np.int64))

    def rows_of(self, ids: Sequence[str | int]) -> Int64[np.ndarray, " r"]:
        """Rows of cells by id: `17`, `BRAIN:17` where several brains have one, or `#17` for row 17."""
        return rows_of(self.parts, ids)

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        where: Sequence[str] = (),
        encoder: Encoder | str | None = None,
        exclude: Sequence[int] | np.ndarray | None = None,
    ) -> Hits:
        """The k nearest rows of each query vector (q, d) or (d,).

        `where` are conditions as `marker=NeuN`, `region=CTX,HPF` or `score>=0.5`, all of which a hit fulfils.
        `encoder`, an Encoder or its sha256, says whose vectors the queries are; embeddings say so themselves.
        `exclude[i]` is a row that query i does not get: itself. Raises ModelMismatch for vectors of
        another encoder, pooling or dimension, CanvasError for NaN and for conditions that leave no row.
        """
        ready = self.check_queries(queries, encoder)
        _check_k(k)
        mask = rows_where(self.parts, where)
        rows, squared = self._near.search(ready, k + (exclude is not None), mask)
        if exclude is not None:
            rows, squared = without(rows, squared, np.asarray(exclude), k)
        return Hits(rows, self._near.distance(squared))

    def search_ids(self, ids: Sequence[str | int], k: int = 10, *, where: Sequence[str] = ()) -> Hits:
        """The k nearest other rows of each cell, by id."""
        rows = self.rows_of(ids)
        return self.search(self.vectors(rows), k, where=where, exclude=rows)

    def like(
        self,
        like: Sequence[str | int],
        unlike: Sequence[str | int] = (),
        k: int = 10,
        *,
        where: Sequence[str] = (),
    ) -> Hits:
        """Search by examples and counter-examples, by id: one row of hits, the examples excluded.

        Among the neighbours of the examples (ten times as many as are wanted), ordered by mean distance to
        the counter-examples less mean distance to the examples.
        """
        _check_k(k)
        if not like:
            raise CanvasError("no example was given; name at least one cell that the hits shall be like")
        examples, others = self.rows_of(like), self.rows_of(unlike)
        if both := set(examples.tolist()) & set(others.tolist()):
            raise CanvasError(f"{counted(len(both), 'cell', 'stand')} among examples and counter-examples")
        excluded = np.concatenate([examples, others])
        mask = rows_where(self.parts, where)
        proposed, _ = self._near.search(self.vectors(examples), max(10 * k, 200) + len(excluded), mask)
        rows = np.setdiff1d(proposed[proposed >= 0], excluded)
        vectors = self.vectors(rows)
        to_examples = self._mean_distance(vectors, self.vectors(examples))
        score = (self._mean_distance(vectors, self.vectors(others)) if len(others) else 0) - to_examples
        order = np.lexsort((rows, -score))[:k]
        return Hits(
            padded(rows[order], k, -1),
            padded(to_examples[order], k, np.inf),
            padded(score[order], k, -np.inf),
        )

    def novelty(
        self,
        queries: Any,
        *,
        encoder: Encoder | str | None = None,
        exclude: Sequence[int] | np.ndarray | None = None,
    ) -> Float32[np.ndarray, " q"]:
        """Novelty of each vector, its percentile among the index's cells, 0 to 1.

        The share of the index's own cells that lie nearer to their neighbours than this vector does to its:
        .5 is an ordinary cell, 1 is farther out than every cell that was sampled.
        """
        calibration = self.about["novelty"]
        if calibration is None:
            raise CanvasError(
                f"the index holds {len(self)} rows, too few to tell what is new; index 12 or more"
            )
        ready = self.check_queries(queries, encoder)
        mean = self._near.mean_distance(ready, calibration["neighbours"], exclude)
        quantiles = np.asarray(calibration["quantiles"], np.float32)
        return np.interp(mean, *rising(quantiles)).astype(np.float32)

    def check_queries(self, queries: Any, encoder: Encoder | str | None = None) -> Float32[np.ndarray, "q d"]:
        """Validate query vectors and normalise them as stored."""
        if isinstance(queries, Embeddings):
            encoder = queries.encoder_sha256
            self.check_pool(queries.pool, queries.attributes.get("layer"))
            queries = queries.vectors
        sha256 = encoder if isinstance(encoder, str | None) else encoder.sha256
        if sha256 is not None:
            self.check_encoder(sha256)
        try:
            array = np.atleast_2d(np.asarray(queries, dtype=np.float32))
        except (TypeError, ValueError) as problem:
            raise CanvasError(f"query vectors are no numbers: {problem}") from problem
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise ModelMismatch(f"query vectors have shape {array.shape}; the index takes (n, {self.dim})")
        if not len(array):
            raise CanvasError(f"there is no query vector; the index takes (n, {self.dim}) with n at least 1")
        return np.ascontiguousarray(prepared(array, self.metric))

    def check_encoder(self, sha256: str) -> None:
        """Refuse vectors of another encoder."""
        if sha256 != self.encoder_sha256:
            raise ModelMismatch(f"the vectors are of encoder {sha256[:12]}; {self._wanted()}")

    def check_pool(self, pool: str, layer: int | None = None) -> None:
        """Refuse vectors of another pooling or layer."""
        if (pool, layer) != (self.pool, self.layer):
            raise ModelMismatch(f"the vectors are of {pooling_name(pool, layer)}; {self._wanted()}")

    def _wanted(self) -> str:
        pooling = pooling_name(self.pool, self.layer)
        return f"the index was made from encoder {self.encoder_sha256[:12]}, {pooling}"

    def _mean_distance(self, vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Mean over `others` of the distance to each of `vectors`."""
        total = np.zeros(len(vectors), np.float32)
        for other in others:
            total += self._near.distance(((vectors - other) ** 2).sum(axis=1))
        return total / len(others)


def _check_k(k: int) -> None:
    if not 1 <= k <= 100_000:
        raise CanvasError(f"k is {k}; ask for 1 to 100,000 hits")
