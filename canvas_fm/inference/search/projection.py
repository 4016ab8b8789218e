"""2D projection of an index's embeddings by PCA or UMAP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

from canvas_fm.errors import CanvasError
from canvas_fm.inference.search.index.index import Index
from canvas_fm.inference.search.index.index_store import Part, by_part

METHODS = ("pca", "umap")
Kind = Literal["number", "text"]
_BLOCK = 8192  # vectors in memory at a time
_UMAP_DIMS = 50  # principal components that UMAP starts from


@dataclass(frozen=True)
class EmbeddingMap:
    """2D positions `xy` (n, 2) of `rows` of an index; for PCA the explained variance."""

    rows: Int64[np.ndarray, " n"]
    xy: Float32[np.ndarray, "n 2"]
    method: str
    share: tuple[float, float] | None


@dataclass(frozen=True)
class Column:
    """One column of some rows: numbers (NaN where absent), or codes into `words` (−1 where absent)."""

    kind: Kind
    values: Shaped[np.ndarray, " n"]
    words: list[str]


def methods() -> tuple[str, ...]:
    """The available projection methods; UMAP is an extra."""
    return METHODS if find_spec("umap") else METHODS[:1]


def embedding_map(index: Index, *, method: str = "pca", most: int = 200_000, seed: int = 0) -> EmbeddingMap:
    """Projection of an index, or of `most` random rows of it, in row order.

    `pca`: the two directions in which the vectors vary most, turned so that the largest weight of each is
    positive; memory goes by a block of vectors and the square of their length. `umap` (extra `umap`) starts
    from 50 of them and takes minutes for a hundred thousand rows. Raises CanvasError for another method and
    where the extra is not installed.
    """
    if method not in METHODS:
        raise CanvasError(f"the method is {method!r}; give one of {', '.join(METHODS)}")
    if method not in methods():
        raise CanvasError("UMAP is not installed: pip install 'canvas-fm[umap]', or take method pca")
    if most < 1:
        raise CanvasError(f"most is {most}; a map shows at least one row")
    rows = np.arange(len(index), dtype=np.int64)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False)).astype(np.int64)
    mean, axes, shares = _principal_axes(index, rows)
    if method == "pca":
        share = (float(shares[0]), float(shares[1]))
        return EmbeddingMap(rows, _projected(index, rows, mean, axes[:, :2]), method, share)
    return EmbeddingMap(rows, _umap(_projected(index, rows, mean, axes[:, :_UMAP_DIMS]), seed), method, None)


def _blocks(index: Index, rows: Int64[np.ndarray, " n"]) -> Iterator[tuple[slice, np.ndarray]]:
    for first in range(0, len(rows), _BLOCK):
        block = slice(first, first + _BLOCK)
        yield block, index.vectors(rows[block]).astype(np.float64)


def _principal_axes(
    index: Index, rows: Int64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "d k"], Float64[np.ndarray, " k"]]:
    """(mean, axes as columns, explained variance of each), the largest first; at least two axes."""
    dim = index.dim
    total, square = np.zeros(dim), np.zeros((dim, dim))
    shift: np.ndarray | None = None  # so that nothing is lost where the mean is large beside the spread
    for _, vectors in _blocks(index, rows):
        shift = vectors.mean(axis=0) if shift is None else shift
        vectors -= shift
        total += vectors.sum(axis=0)
        square += vectors.T @ vectors
    count = max(len(rows), 1)
    offset = total / count
    values, axes = np.linalg.eigh(square / count - np.outer(offset, offset))
    values, axes = np.maximum(values[::-1], 0), axes[:, ::-1]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, np.arange(dim)] < 0, -1.0, 1.0)
    if dim == 1:
        values, axes = np.append(values, 0.0), np.pad(axes, ((0, 0), (0, 1)))
    whole = values.sum()
    mean = offset if shift is None else offset + shift
    return mean, axes, values / whole if whole > 0 else np.zeros_like(values)


def _projected(index: Index, rows: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), axes.shape[1]), np.float32)
    for block, vectors in _blocks(index, rows):
        out[block] = (vectors - mean) @ axes
    return out


def _umap(start: np.ndarray, seed: int) -> np.ndarray:
    from umap import UMAP

    if len(start) < 4:  # too few to have neighbours
        return np.ascontiguousarray(start[:, :2])
    model = UMAP(n_components=2, n_neighbors=min(15, len(start) - 1), random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(start), np.float32)


def column_kinds(index: Index) -> dict[str, Kind]:
    """Columns to tell cells apart, `number` or `text`; always `row`, `id`, `z`, `y`, `x`."""
    out: dict[str, Kind] = {}
    for part in index.parts:
        for name in part.constants:
            out[name] = "text"
        for name, kind in part.columns.items():
            # Where one part has words and another numbers, the numbers are words as well.
            number = kind == "number" and out.get(name, "number") == "number"
            out[name] = "number" if number else "text"
    first: dict[str, Kind] = {"row": "number", "id": out.pop("id", "number")}
    first |= dict.fromkeys("zyx", "number")
    return first | {name: kind for name, kind in out.items() if name not in first}


def column(index: Index, name: str, rows: Int64[np.ndarray, " n"], *, most_words: int = 255) -> Column:
    """A column of some rows; of words the `most_words` most frequent, all others are `-2`.

    Raises CanvasError for a column that no row has.
    """
    kinds = column_kinds(index)
    if name not in kinds:
        raise CanvasError(f"no row has a column {name!r:.80}; known: {', '.join(kinds)}")
    if name == "row":
        return Column("number", rows, [])
    if kinds[name] == "number":
        return Column("number", _numbers(index.parts, name, rows), [])
    coded, counts = _coded(index.parts, name, rows)
    words = [word for word, _ in counts.most_common(most_words)]
    places = {word: place for place, word in enumerate(words)}
    values = np.full(len(rows), -1, np.int32)
    for positions, codes, words_of_part in coded:
        table = np.array([*(places.get(word, -2) if word else -1 for word in words_of_part), -1], np.int32)
        values[positions] = table[codes]
    return Column("text", values, words)


def _numbers(parts: list[Part], name: str, rows: np.ndarray) -> np.ndarray:
    parts_read = []
    for part, positions in by_part(parts, rows):
        local = rows[positions] - part.first
        if name in ("z", "y", "x"):
            parts_read.append((positions, np.asarray(part.zyx[local, "zyx".index(name)])))
        elif name in part.columns:
            parts_read.append((positions, np.asarray(part.values(name)[local])))
    kinds = {values.dtype for _, values in parts_read}
    whole = sum(len(positions) for positions, _ in parts_read) == len(rows)
    dtype = np.result_type(*kinds) if kinds else np.dtype(np.float32)
    if not whole and dtype.kind != "f":
        dtype = np.dtype(np.float64)
    out = np.full(len(rows), np.nan if dtype.kind == "f" else 0, dtype)
    for positions, values in parts_read:
        out[positions] = values
    return out


def _coded(parts: list[Part], name: str, rows: np.ndarray) -> tuple[list[tuple[Any, Any, Any]], Counter[str]]:
    """For each part (positions in `rows`, codes, words by code), and the frequency of each word."""
    coded, counts = [], Counter[str]()
    for part, positions in by_part(parts, rows):
        local = rows[positions] - part.first
        if part.columns.get(name) == "text":
            words, codes = part.words(name), np.asarray(part.values(name)[local])
        elif name in part.columns:
            numbers, codes = np.unique(part.values(name)[local], return_inverse=True)
            words = [f"{value:.15g}" if value == value else "" for value in numbers.tolist()]
        else:
            words, codes = [part.constants.get(name) or ""], np.zeros(len(positions), np.int64)
        for code, count in zip(
            *(each.tolist() for each in np.unique(codes, return_counts=True)), strict=True
        ):
            if words[code]:
                counts[words[code]] += count
        coded.append((positions, codes, words))
    return coded, counts
