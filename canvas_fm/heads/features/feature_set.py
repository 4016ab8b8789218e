"""Feature sets: one feature vector for each candidate, in named blocks with the model of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from canvas_fm.errors import BadInput, ModelMismatch

MAE, DETECTOR = "mae", "detector"  # the blocks that are made by an encoder and by a detector
DETECTOR_LOGIT = "heat"  # the block of the detector's logit at a candidate, by its name in files: one column
CANDIDATE_SCORE = "score"  # the block of the score that the candidates came with, see candidate_score.py
AMPLITUDE = "amplitude"  # the block of the spot's amplitude, see amplitude.py: one column
SHAPE = "shape"  # the block of intensity, contrast and shape around a candidate, see shape.py
# Blocks of one column that tell most: used with every variant, and hardly penalised.
UNPENALISED = (DETECTOR_LOGIT, CANDIDATE_SCORE, AMPLITUDE)
WITH_ANY_VARIANT = (*UNPENALISED, SHAPE)
CORRECTIONS = ("none", "centre", "standardise", "whiten")
# Of a covariance, the share of its mean variance that is mixed in: directions without variance stay finite.
SHRINKAGE = 0.01


@dataclass(frozen=True)
class Provenance:
    """Model behind a block: name, sha256, and the settings that determine its values."""

    name: str
    sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "settings": dict(self.settings)}


@dataclass(frozen=True)
class FeatureSet:
    """Features of candidates: `x` (n, d) float32, `blocks` by name, `groups` the brain of each row.

    `provenance` says of each block which model made it; a block of plain columns has none.
    """

    x: Float32[np.ndarray, "n d"]
    blocks: Mapping[str, slice]
    groups: Shaped[np.ndarray, " n"]
    provenance: Mapping[str, Provenance] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or len(self.groups) != len(self.x):
            raise BadInput(
                f"features have shape {self.x.shape} and {len(self.groups)} groups; expected (n, d) and n"
            )
        check_blocks(self.blocks, self.x.shape[1])
        check_finite(self.x, self.blocks)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def sha256(self) -> dict[str, str]:
        """sha256 of the model behind each block."""
        return {name: provenance.sha256 for name, provenance in self.provenance.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of values, brains and blocks."""
        digest = hashlib.sha256(np.ascontiguousarray(self.x).tobytes())
        digest.update("\n".join(map(str, self.groups)).encode())
        digest.update(repr({name: (part.start, part.stop) for name, part in self.blocks.items()}).encode())
        return digest.hexdigest()

    def block(self, name: str) -> Float32[np.ndarray, "n k"]:
        """Columns of one block."""
        if name not in self.blocks:
            raise BadInput(f"there is no block {name!r}; these features have {', '.join(self.blocks)}")
        return self.x[:, self.blocks[name]]

    def rows(self, keep: Shaped[np.ndarray, " m"]) -> FeatureSet:
        """A subset of rows, by mask or index."""
        return FeatureSet(self.x[keep], self.blocks, self.groups[keep], self.provenance)

    def only(self, *names: str) -> FeatureSet:
        """A subset of blocks, in their stored order."""
        selected = {
            name: (self.block(name), self.provenance.get(name)) for name in self.blocks if name in names
        }
        if len(selected) < len(names):
            self.block(next(name for name in names if name not in selected))
        if len(selected) == len(self.blocks):
            return self
        together = beside(selected, "")
        return FeatureSet(together.x, together.blocks, self.groups, together.provenance)

    def corrected(self, how: str) -> FeatureSet:
        """Features with each brain corrected separately (see `Moments.corrected`)."""
        x = correct_by_group(self.x, self.groups, how)
        return FeatureSet(x, self.blocks, self.groups, self.provenance)


def stack(parts: Sequence[FeatureSet]) -> FeatureSet:
    """Concatenate features of several brains; ModelMismatch unless blocks and models are the same."""
    if not parts:
        raise BadInput("no features were given")
    first = parts[0]
    for part in parts[1:]:
        if dict(part.blocks) != dict(first.blocks) or dict(part.provenance) != dict(first.provenance):
            raise ModelMismatch(
                f"features of {_describe(part)} cannot stand below those of {_describe(first)}; make both "
                "anew with the same models and settings"
            )
    groups = np.concatenate([np.asarray(part.groups, dtype=np.str_) for part in parts])
    return FeatureSet(np.concatenate([part.x for part in parts]), first.blocks, groups, first.provenance)


def beside(
    parts: Mapping[str, tuple[Float32[np.ndarray, "n k"], Provenance | None]], group: str
) -> FeatureSet:
    """Concatenate blocks of one brain column-wise; rows are the same candidates in each."""
    blocks: dict[str, slice] = {}
    start = 0
    for name, (x, _) in parts.items():
        blocks[name] = slice(start, start + x.shape[1])
        start += x.shape[1]
    x = np.concatenate([x for x, _ in parts.values()], axis=1)
    provenance = {name: provenance for name, (_, provenance) in parts.items() if provenance is not None}
    return FeatureSet(x, blocks, np.full(len(x), group), provenance)


def check_blocks(blocks: Mapping[str, slice], dim: int) -> None:
    """Raise BadInput unless blocks are contiguous, disjoint column ranges."""
    if not blocks:
        raise BadInput("blocks is empty; name at least one, such as {'mae': slice(0, 384)}")
    taken = np.zeros(dim, dtype=bool)
    for name, part in blocks.items():
        start, stop = part.start or 0, dim if part.stop is None else part.stop
        if part.step not in (None, 1) or not 0 <= start < stop <= dim:
            raise BadInput(f"block {name!r} is {part}; expected a part of the {dim} columns")
        if taken[start:stop].any():
            raise BadInput(f"block {name!r} ({part}) overlaps another one")
        taken[start:stop] = True


def check_finite(x: Float32[np.ndarray, "n d"], blocks: Mapping[str, slice] | None = None) -> None:
    """Raise BadInput for NaN or infinite features, with their number and the first row and block."""
    # A sum is finite unless something in it is not (or overflows): one pass without a mask of n × d.
    bad = ~np.isfinite(x.sum(axis=1, dtype=np.float64))
    if not bad.any():
        return
    row = int(np.argmax(bad))
    column = int(np.argmin(np.isfinite(x[row])))
    named = [
        name
        for name, part in (blocks or {}).items()
        if (part.start or 0) <= column < (part.stop or len(x[0]))
    ]
    where = f" (block {named[0]!r})" if named else ""
    raise BadInput(
        f"features hold NaN or infinite values in {bad.sum()} of {len(bad)} rows, first in row {row + 1}, "
        f"column {column + 1}{where}; leave those rows out or make the features anew"
    )


def check_provenance(name: str, actual: Provenance | None, expected: Provenance | None) -> None:
    """Raise ModelMismatch unless a block was computed by the same model with the same settings."""
    if actual is None or expected is None or actual.as_dict() == expected.as_dict() | {"name": actual.name}:
        return
    if actual.sha256 != expected.sha256:
        raise ModelMismatch(
            f"the {name} features are of {actual.name} (sha256 {actual.sha256[:12]}); this refiner was "
            f"fitted with {expected.name} (sha256 {expected.sha256[:12]}): give that model, "
            "or fit anew with this one"
        )
    raise ModelMismatch(
        f"the {name} features were made with {dict(actual.settings)}; this refiner was fitted with "
        f"{dict(expected.settings)}: make them that way"
    )


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a brain's features."""

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, x: Float32[np.ndarray, "n d"]) -> Moments:
        if not len(x):
            raise BadInput("a brain without candidates has no mean to correct by")
        centred = x - x.mean(axis=0, dtype=np.float64)
        return cls(x.mean(axis=0, dtype=np.float64), centred.T @ centred / len(x))

    def corrected(self, x: Float32[np.ndarray, "n d"], how: str) -> Float32[np.ndarray, "n d"]:
        """Centred rows; `standardise` divides by the deviation, `whiten` multiplies by covariance^(−½).

        Whitening by the symmetric root keeps each column closest to what it was, so that columns of
        different brains still mean the same. Columns that never change become 0.
        """
        if how == "none":
            return x
        centred, scale = x - self.mean, self.scale(how)
        return (centred * scale if scale.ndim == 1 else centred @ scale).astype(np.float32)

    def scale(self, how: str) -> np.ndarray:
        """Scale of centred rows: one factor a column (d,), or a matrix (d, d)."""
        if how == "centre":
            return np.ones(len(self.mean))
        if how == "standardise":
            deviation = np.sqrt(np.diag(self.covariance))
            return 1 / np.where(deviation > 1e-12, deviation, 1.0)
        if how == "whiten":
            return self.root()
        raise BadInput(f"correction is {how!r}; give one of {', '.join(CORRECTIONS)}")

    def root(self) -> Float64[np.ndarray, "d d"]:
        """Inverse square root of the covariance, with slight shrinkage towards a sphere."""
        size = len(self.mean)
        level = max(float(np.trace(self.covariance)) / size, 1e-12)
        values, vectors = np.linalg.eigh((1 - SHRINKAGE) * self.covariance + SHRINKAGE * level * np.eye(size))
        return (vectors / np.sqrt(values)) @ vectors.T


def correct_by_group(
    x: Float32[np.ndarray, "n d"], groups: Shaped[np.ndarray, " n"], how: str
) -> Float32[np.ndarray, "n d"]:
    """Correct each brain by its own candidates' moments."""
    if how not in CORRECTIONS:
        raise BadInput(f"correction is {how!r}; give one of {', '.join(CORRECTIONS)}")
    if how == "none":
        return x
    out = np.empty_like(x)
    for name in np.unique(groups):
        group_rows = groups == name
        out[group_rows] = Moments.of(x[group_rows]).corrected(x[group_rows], how)
    return out


def _describe(features: FeatureSet) -> str:
    brain = features.groups[0] if len(features) else "an empty brain"
    blocks = []
    for name in features.blocks:
        provenance = features.provenance.get(name)
        model = (
            ""
            if provenance is None
            else f" ({provenance.name} {provenance.sha256[:8]} {dict(provenance.settings)})"
        )
        blocks.append(f"{name}{model}")
    return f"{brain} with blocks {', '.join(blocks)}"
