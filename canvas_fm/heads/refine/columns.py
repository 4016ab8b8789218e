"""Selection and scaling of a refiner's feature columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from canvas_fm.errors import BadInput
from canvas_fm.heads.features.feature_set import (
    AMPLITUDE,
    DETECTOR_LOGIT,
    UNPENALISED,
    WITH_ANY_VARIANT,
    Moments,
)

CONCAT = "concat"
SCORES = "scores"  # the variant of the blocks of one column alone
REDUCTIONS = ("columns", "pca")
# Factor of an unpenalised column (detector score, candidate score, amplitude) among columns of unit
# deviation: a penalty on the weights then hardly touches it. Among hundreds of columns it would be lost with
# few labels.
UNPENALISED_SCALE = 30.0


@dataclass(frozen=True)
class Columns:
    """The used blocks, concatenated in order, and the reduction of the cut block.

    The shape block and the unpenalised ones (detector score, candidate score, amplitude) are added to every
    variant but `scores`, which is the unpenalised ones alone; these are never cut.
    Of the `cut` block the first round(ratio · d) columns are kept (section 5 of the CANVAS paper calls the
    ratio a contribution: 154 of 384 at 0.4), or as many principal components of it.
    """

    sizes: Mapping[str, int]
    cut: str | None
    kept: int
    reduce: str

    @classmethod
    def of(
        cls, blocks: Mapping[str, slice], dim: int, variant: str, cut: str | None, ratio: float, reduce: str
    ) -> Columns:
        """From a refiner's settings and `dim` columns; BadInput for inconsistent ones."""
        if reduce not in REDUCTIONS:
            raise BadInput(f"reduce is {reduce!r}; give one of {', '.join(REDUCTIONS)}")
        if variant not in (CONCAT, SCORES) and variant not in blocks:
            raise BadInput(
                f"variant is {variant!r}; give {CONCAT} (all blocks), {SCORES} (those of one column) "
                f"or one of the blocks {', '.join(blocks)}"
            )
        beside = UNPENALISED if variant == SCORES else WITH_ANY_VARIANT
        used = [name for name in blocks if variant in (CONCAT, name) or name in beside]
        if not used:
            raise BadInput(
                "variant scores needs a block of one column: give --detector-score, --amplitude-um or "
                "--candidate-score"
            )
        sizes = {name: len(range(*blocks[name].indices(dim))) for name in used}
        may_cut = [name for name in used if name not in UNPENALISED]
        if not 0 < ratio <= 1:
            raise BadInput(f"ratio is {ratio}; give the share of the cut block to keep, above 0 and up to 1")
        if cut is None:
            if ratio < 1 and len(may_cut) != 1:
                raise BadInput(
                    f"ratio is {ratio}: say which block it cuts, cut={' or '.join(map(repr, may_cut))}"
                )
            cut = may_cut[0] if ratio < 1 else None
        elif cut not in may_cut:
            raise BadInput(f"cut is {cut!r}; variant {variant!r} uses {', '.join(may_cut)}")
        n_components = 0 if cut is None else math.floor(ratio * sizes[cut] + 0.5)
        if cut is not None and not n_components:
            raise BadInput(f"ratio {ratio} of the {sizes[cut]} columns of {cut!r} is none; give a higher one")
        return cls(sizes, cut, n_components, reduce)

    def check_correction(self, correction: str) -> None:
        """Raise BadInput for a correction of every brain where an unpenalised block is used.

        It would take away the block's level, for which it is there, and whitening would mix it into the rest.
        """
        unpenalised = [name for name in self.sizes if name in UNPENALISED]
        if unpenalised and correction != "none":
            name = {DETECTOR_LOGIT: "detector score", AMPLITUDE: "amplitude"}.get(
                unpenalised[0], "candidate score"
            )
            raise BadInput(
                f"correction is {correction!r}, which would take the level of "
                f"the {name} away; fit without the correction, or without the {name}"
            )

    @property
    def width(self) -> int:
        """Number of columns of the model's input."""
        return sum(self._taken(name) for name in self.sizes)

    def only(self, *names: str) -> Columns:
        """The selection restricted to some of the blocks."""
        sizes = {name: size for name, size in self.sizes.items() if name in names}
        cut = self.cut if self.cut in sizes else None
        return Columns(sizes, cut, self.kept if cut else 0, self.reduce)

    def places(self, *names: str) -> list[int]:
        """Indices of the columns of some blocks among the taken ones."""
        indices: list[int] = []
        start = 0
        for name in self.sizes:
            stop = start + self._taken(name)
            indices += range(start, stop) if name in names else []
            start = stop
        return indices

    def take(self, blocks: Mapping[str, Float32[np.ndarray, "n k"]]) -> Float32[np.ndarray, "n w"]:
        """The used columns, before the cut block is reduced to components."""
        return np.concatenate([blocks[name][:, : self._taken(name)] for name in self.sizes], axis=1)

    def components(self) -> tuple[slice, int] | None:
        """Position of the block to be reduced among the used columns, and its number of components."""
        if self.cut is None or self.reduce != "pca" or self.kept == self.sizes[self.cut]:
            return None
        before = list(self.sizes)[: list(self.sizes).index(self.cut)]
        start = sum(self._taken(name) for name in before)
        return slice(start, start + self.sizes[self.cut]), self.kept

    def weights(self) -> Float64[np.ndarray, " k"] | None:
        """Factor of each scaled column after reduction; None if all are 1."""
        if not any(name in UNPENALISED for name in self.sizes):
            return None
        sizes = {name: self.kept if name == self.cut else size for name, size in self.sizes.items()}
        return np.repeat(
            [UNPENALISED_SCALE if name in UNPENALISED else 1.0 for name in sizes], list(sizes.values())
        )

    def _taken(self, name: str) -> int:
        return self.kept if name == self.cut and self.reduce == "columns" else self.sizes[name]


@dataclass(frozen=True)
class Affine:
    """z = (x − mean) · matrix, or times one scale a column; fitted on training rows only."""

    mean: Float64[np.ndarray, " w"]
    matrix: np.ndarray  # (w, k), or the scales (w,)

    @classmethod
    def fit(
        cls,
        x: Float32[np.ndarray, "n w"],
        components: tuple[slice, int] | None,
        *,
        whiten: bool,
        weights: Float64[np.ndarray, " k"] | None = None,
    ) -> Affine:
        """Standardise columns; components keep their proportions; `whiten` gives unit covariance.

        Components of unit deviation each would make the last ones, which are noise, as loud as the first.
        At the end each column is multiplied by its weight.
        """
        affine = cls._unit(x, components, whiten)
        return affine if weights is None else cls(affine.mean, affine.matrix * weights)

    @classmethod
    def _unit(
        cls, x: Float32[np.ndarray, "n w"], components: tuple[slice, int] | None, whiten: bool
    ) -> Affine:
        mean = x.mean(axis=0, dtype=np.float64)
        if components is None and not whiten:
            return cls(mean, _inverse(x.std(axis=0, dtype=np.float64)))
        covariance = Moments.of(x).covariance
        matrix = np.eye(len(mean))
        if components is not None:
            where, count = components
            vectors = np.linalg.eigh(covariance[where, where])[1][:, ::-1][:, :count]
            matrix = np.zeros((len(mean), len(mean) - (where.stop - where.start) + count))
            matrix[: where.start, : where.start] = np.eye(where.start)
            matrix[where, where.start : where.start + count] = vectors
            matrix[where.stop :, where.start + count :] = np.eye(len(mean) - where.stop)
        inner = matrix.T @ covariance @ matrix
        if whiten:
            return cls(mean, matrix @ Moments(np.zeros(len(inner)), inner).root())
        scale = _inverse(np.sqrt(np.maximum(np.diag(inner), 0)))
        if components is not None:
            where, count = components
            component_columns = slice(where.start, where.start + count)
            scale[component_columns] = _inverse(
                np.sqrt(np.diag(inner)[component_columns].mean(keepdims=True))
            )
        return cls(mean, matrix * scale)

    def __call__(self, x: Float32[np.ndarray, "n w"]) -> Float64[np.ndarray, "n k"]:
        centred = x - self.mean
        return centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix

    def folded(self, weight: Float64[np.ndarray, "h k"]) -> Float64[np.ndarray, "h w"]:
        """Weights on x − mean equivalent to weights on z."""
        return weight * self.matrix if self.matrix.ndim == 1 else weight @ self.matrix.T


def _inverse(deviation: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """1 / standard deviation, and 0 for constant columns."""
    return np.where(deviation > 1e-7, 1 / np.maximum(deviation, 1e-7), 0.0)
