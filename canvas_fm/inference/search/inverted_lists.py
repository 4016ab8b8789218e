"""Candidate generation of a search: exhaustive for a small index, inverted lists of codes for a large one.

Whatever proposes rows, the stored vectors decide: distances are computed from them, so codes cost recall and
never correctness. Lists lie in files of at most LIST_ROWS rows, each memory-mapped, so that building and
adding hold no more than one such file in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from canvas_fm.errors import DamagedStore
from canvas_fm.files.atomic import disk_full_as_error
from canvas_fm.inference.search.index.index_store import BLOCK, Part, file_entry, gather

FLAT_MOST = 200_000  # rows that are searched exactly
SQ8_MOST = 20_000_000  # rows whose codes are 8 bits a number; beyond 1 bit
LIST_ROWS = 2_000_000
_TRAIN_PER_LIST = 64
FEW = 50_000  # rows left by a filter that are searched exactly

_FACTORS = {"ivf-sq8": 2, "ivf-rabitq": 10}  # rows proposed for each one that is wanted
_SPECS = {"ivf-sq8": "IVF{nlist},SQ8", "ivf-rabitq": "IVF{nlist},RaBitQ"}


def structure_for(rows: int) -> str:
    """Structure by the number of rows: `flat`, `ivf-sq8` or `ivf-rabitq`."""
    return "flat" if rows <= FLAT_MOST else "ivf-sq8" if rows <= SQ8_MOST else "ivf-rabitq"


def lists_for(rows: int) -> int:
    """Number of inverted lists: twice the square root of the rows, as a power of two."""
    return 2 ** max(4, round(math.log2(2 * math.sqrt(rows))))


def outgrown(lists: dict[str, Any] | None, rows: int) -> bool:
    """Whether so many rows need another structure, or lists trained on more rows."""
    if lists is None:
        return structure_for(rows) != "flat"
    return lists["kind"] != structure_for(rows) or rows > 8 * lists["trained_rows"]


class Lists:
    """Inverted lists over the first `rows` rows of an index."""

    def __init__(self, folder: Path, about: dict[str, Any], dim: int) -> None:
        self.folder, self.about, self.dim = folder, about, dim
        self.kind: str = about["kind"]
        self.files = [(each["first"], self._open(each["name"])) for each in about["files"]]

    @property
    def factor(self) -> int:
        """Number of rows to propose for each result."""
        return int(self.about["k_factor"])

    def _open(self, name: str) -> Any:
        import faiss

        try:
            return faiss.read_index(str(self.folder / name), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as problem:
            raise DamagedStore(
                self.folder, "", name, "cannot be read", "restore the file or build the index again"
            ) from problem

    def propose(
        self,
        queries: Float32[np.ndarray, "q d"],
        count: int,
        mask: Bool[np.ndarray, " n"] | None = None,
        nprobe: int | None = None,
    ) -> Int64[np.ndarray, "q c"]:
        """Up to `count` rows for each query, unordered, −1 beyond the last."""
        import faiss

        kind = faiss.IVFRaBitQSearchParameters if self.kind == "ivf-rabitq" else faiss.SearchParametersIVF
        proposals = []
        bits = None if mask is None else np.packbits(mask, bitorder="little")
        for _, index in self.files:
            options = kind()
            options.nprobe = min(nprobe or self.about["nprobe"], self.about["nlist"])
            if bits is not None and mask is not None:
                options.sel = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
            distances, rows = index.search(queries, count, params=options)
            proposals.append((distances, rows))
        return _merge(proposals, count)


def propose_exactly(
    parts: list[Part],
    queries: Float32[np.ndarray, "q d"],
    count: int,
    mask: Bool[np.ndarray, " n"] | None = None,
) -> Int64[np.ndarray, "q c"]:
    """The nearest `count` of all rows (of those in `mask`), −1 beyond the last; blockwise."""
    import faiss

    proposals: list[tuple[np.ndarray, np.ndarray]] = []
    for first, block, rows in _blocks(parts, mask):
        n_nearest = min(count, len(block))
        distances, nearest = faiss.knn(queries, block, n_nearest)
        numbers = first + nearest if rows is None else rows[nearest]
        proposals.append((distances, numbers))
        if sum(each.shape[1] for each, _ in proposals) > 4 * count + 64:
            proposals = [_nearest(proposals, count)]
    return _merge(proposals, count)


def _blocks(
    parts: list[Part], mask: Bool[np.ndarray, " n"] | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    for part in parts:
        for start in range(0, part.rows, BLOCK):
            first = part.first + start
            block: Any = part.vectors[start : start + BLOCK]
            if mask is None:
                yield first, np.ascontiguousarray(block, dtype=np.float32), None
                continue
            inside = np.flatnonzero(mask[first : first + len(block)])
            if len(inside):
                yield first, np.ascontiguousarray(block[inside], dtype=np.float32), first + inside


def _nearest(proposals: list[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    distances = np.concatenate([each for each, _ in proposals], axis=1)
    rows = np.concatenate([each for _, each in proposals], axis=1)
    if rows.shape[1] > count:
        keep = np.argpartition(np.where(rows < 0, np.inf, distances), count - 1, axis=1)[:, :count]
        distances, rows = np.take_along_axis(distances, keep, 1), np.take_along_axis(rows, keep, 1)
    return distances, rows


def _merge(proposals: list[tuple[np.ndarray, np.ndarray]], count: int) -> Int64[np.ndarray, "q c"]:
    return _nearest(proposals, count)[1].astype(np.int64)


def train(
    parts: list[Part], folder: Path, rows: int, dim: int, generation: int, seed: int = 0
) -> dict[str, Any]:
    """Train empty lists on a sample of the rows and write them; returns their manifest entry."""
    import faiss

    kind, nlist = structure_for(rows), lists_for(rows)
    sample = np.random.default_rng(seed).choice(rows, min(rows, _TRAIN_PER_LIST * nlist), replace=False)
    index = faiss.index_factory(dim, _SPECS[kind].format(nlist=nlist), faiss.METRIC_L2)
    clustering: Any = index.cp  # type: ignore[attr-defined]  # an IVF has one
    clustering.seed = seed + 1
    clustering.min_points_per_centroid = 1
    index.train(gather(parts, np.sort(sample), dim))
    name = f"trained-{generation:04d}.faiss"
    with disk_full_as_error(folder):
        faiss.write_index(index, str(folder / name))
        entry = file_entry(folder / name)
    return {
        "kind": kind,
        "nlist": nlist,
        "nprobe": nlist,
        "k_factor": _FACTORS[kind],
        "trained_rows": rows,
        "trained": {"name": name, "file": entry},
        "files": [],
    }


def extend(
    about: dict[str, Any], parts: list[Part], folder: Path, rows: int, dim: int, generation: int
) -> dict[str, Any]:
    """Write lists for rows without any; small files at the end are merged."""
    files = list(about["files"])
    small = [each for each in files if each["rows"] < LIST_ROWS // 2]
    if len(small) > 8:
        files = files[: files.index(small[0])]
    first = sum(each["rows"] for each in files)
    while first < rows:
        count = min(LIST_ROWS, rows - first)
        files.append(_write_lists(about, parts, folder, first, count, dim, generation))
        first += count
    return {**about, "files": files}


def _write_lists(
    about: dict[str, Any],
    parts: list[Part],
    folder: Path,
    first: int,
    count: int,
    dim: int,
    generation: int,
) -> dict[str, Any]:
    import faiss

    index = faiss.read_index(str(folder / about["trained"]["name"]))
    for start in range(first, first + count, BLOCK):
        numbers = np.arange(start, min(start + BLOCK, first + count), dtype=np.int64)
        index.add_with_ids(gather(parts, numbers, dim), numbers)
    name = f"lists-{generation:04d}-{first}.faiss"
    with disk_full_as_error(folder):
        faiss.write_index(index, str(folder / name))
        entry = file_entry(folder / name)
    return {"name": name, "first": first, "rows": count, "file": entry}
