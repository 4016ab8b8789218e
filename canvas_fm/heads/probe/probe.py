"""A logistic probe of embeddings: fitting, its folder, applying it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import Field

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.files.option_sets import FrozenModel
from canvas_fm.heads.features.feature_set import check_finite, correct_by_group
from canvas_fm.heads.labels.group_folds import Folds
from canvas_fm.heads.probe.labelled_embeddings import Correction, ProbeData
from canvas_fm.heads.refine.head.logistic_path import Linear, fit_path
from canvas_fm.inference.embed.store.embedding_store import Embeddings
from canvas_fm.models.folder.model_folder import check_config, fill, read_kind, write_model
from canvas_fm.models.heads.linear import LinearHead

PROBE_FILE = "model.safetensors"


class ProbeConfig(FrozenModel):
    """Everything needed to use a probe's weights: `config.json` of its folder."""

    kind: Literal["probe"] = "probe"
    format_version: Literal[1] = 1
    dim: int
    labels: str
    classes: tuple[str, ...]
    encoder: str
    encoder_sha256: str
    pool: str
    correction: Correction = "none"
    c: float
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, str]
    sha256: str


class Probe:
    """A fitted probe: class probabilities of embeddings of its encoder."""

    def __init__(self, config: ProbeConfig, net: LinearHead, path: Path | None = None) -> None:
        self.config, self.net, self.path = config, net, path

    @classmethod
    def open(cls, folder: str | Path) -> Probe:
        """Open the folder `probe/`, verified; CanvasError if it is something else or was changed."""
        folder = Path(folder)
        kind, raw = read_kind(folder)
        if kind != "probe":
            raise ModelMismatch(f"{folder / 'config.json'} says kind {kind!r}; a probe was expected")
        config = check_config(folder, raw, ProbeConfig, {PROBE_FILE})
        net = LinearHead(config.dim, len(config.classes))
        fill(net, folder, config.weights, PROBE_FILE)
        net.eval().requires_grad_(False)
        return cls(config, net, folder)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes

    def proba(self, x: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n classes"]:
        """Class probabilities (n, classes), columns in the order of `classes`.

        `x` are embeddings, corrected as the config says. Raises CanvasError for NaN and another length.
        """
        if x.ndim != 2 or x.shape[1] != self.config.dim:
            raise CanvasError(f"embeddings have shape {x.shape}; this probe takes (n, {self.config.dim})")
        check_finite(x)
        with torch.inference_mode():
            return self.net(torch.from_numpy(np.ascontiguousarray(x))).numpy()

    def apply(self, embeddings: Embeddings) -> Points:
        """Points with `p_CLASS` for each class (`p_cell` for 0 and 1) and the likeliest, `predicted`.

        Rows in their order, all columns kept. Raises ModelMismatch for embeddings of another encoder or
        pooling, CanvasError where a column of that name is there already.
        """
        for what, expected, actual in (
            ("encoder", self.config.encoder_sha256, embeddings.encoder_sha256),
            ("pooling", self.config.pool, embeddings.pool),
        ):
            if expected != actual:
                raise ModelMismatch(
                    f"{embeddings.path} is of {what} {actual[:12]}, this probe of {expected[:12]} "
                    f"({self.config.encoder}); embed the points with that one"
                )
        x = correct_by_group(embeddings.vectors, np.zeros(len(embeddings), int), self.config.correction)
        p = self.proba(x)
        if self.classes == ("0", "1"):
            added: dict[str, np.ndarray] = {"p_cell": p[:, 1]}
        else:
            added = {f"p_{name}": p[:, number] for number, name in enumerate(self.classes)}
        added["predicted"] = np.array(self.classes)[p.argmax(axis=1)]
        points = embeddings.points
        if clash := [name for name in added if name in points.columns]:
            raise CanvasError(
                f"{embeddings.path} has a column {clash[0]!r} already; rename it, the probe adds its own"
            )
        meta = {**points.meta, "probe": self.config.sha256, "encoder": self.config.encoder_sha256}
        return Points(points.zyx, {**points.columns, **added}, meta)


def fit_probe(
    data: ProbeData, folds: Folds, out: str | Path, *, labels: str, provenance: dict[str, Any] | None = None
) -> Probe:
    """Fit on all rows with the penalty chosen by cross-validation; writes the folder atomically."""
    model = fit_path(data.x, data.code, len(data.classes), folds).model
    settings = {
        "dim": data.x.shape[1],
        "labels": labels,
        "classes": data.classes,
        "encoder": data.encoder,
        "encoder_sha256": data.encoder_sha256,
        "pool": data.pool,
        "correction": data.correction,
        "c": model.c,
        "provenance": provenance or {},
    }
    net = _net(model, len(data.classes))
    write_model(Path(out), ProbeConfig, settings, {PROBE_FILE: net}, torch.float32)
    return Probe.open(out)


def _net(model: Linear, classes: int) -> LinearHead:
    net = LinearHead(len(model.mean), classes)
    with torch.no_grad():
        for target, values in (
            (net.mean, model.mean),
            (net.scale, model.scale),
            (net.linear.weight, model.coef),
            (net.linear.bias, model.intercept),
        ):
            target.copy_(torch.from_numpy(values))
    return net
