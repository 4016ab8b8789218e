"""The stored check by which int8 is admitted in place of fp32.

`int8/` holds the quantised graph and `check.json`, in the encoder's folder or, where that cannot be written,
in the user's cache by the encoder's sha256. `canvas_fm.heads.quantise` makes both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from canvas_fm.data.volume.window import cache_folder
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import disk_full_as_error, sync_path
from canvas_fm.files.option_sets import FrozenModel
from canvas_fm.models.device import native_int8
from canvas_fm.models.load_model import Encoder

_log = logging.getLogger(__name__)
AGREEMENT, F1_MOVE = 0.95, 0.005  # at least, and below: what int8 is admitted by
CHECK, GRAPH = "check.json", "encoder.xml"
_KEPT = "int8 check"


class PoolCheck(FrozenModel):
    """Check of one pooling: neighbour agreement, and the refiner's F1 on held-out volumes.

    `f1_int8` is of a refiner that was fitted on int8 embeddings, `f1_carried` of the one fitted on fp32 that
    judges int8 embeddings, `f1_all` of keeping every candidate: a refiner that is no better shows nothing.
    """

    agreement: float
    f1_fp32: float
    f1_int8: float
    f1_carried: float
    f1_all: float

    @property
    def f1_move(self) -> float:
        """The larger absolute change of F1 from fp32."""
        return max(abs(self.f1_int8 - self.f1_fp32), abs(self.f1_carried - self.f1_fp32))

    @property
    def passed(self) -> bool:
        return self.agreement >= AGREEMENT and self.f1_move < F1_MOVE and self.f1_fp32 > self.f1_all


class Int8Check(FrozenModel):
    """Result of the check: `check.json`."""

    kind: Literal["int8"] = "int8"
    format_version: Literal[1] = 1
    encoder_sha256: str
    neighbours: int
    pools: dict[str, PoolCheck]
    candidates: int
    volumes: list[str]
    calibration_volumes: list[str]
    calibration_crops: int
    exact: bool
    """Whether the processor of the check adds int8 products without saturation."""
    versions: dict[str, str]
    files: dict[str, str]

    def summary(self) -> dict[str, object]:
        """The deciding figures, for the service and the command line."""
        pools = {
            name: {
                "admitted": check.passed,
                "agreement": round(check.agreement, 4),
                "f1": round(check.f1_fp32, 4),
                "f1_move": round(check.f1_move, 5),
            }
            for name, check in self.pools.items()
        }
        about = {"encoder_sha256": self.encoder_sha256, "neighbours": self.neighbours}
        return {**about, "candidates": self.candidates, "volumes": self.volumes, "pools": pools}

    def figures_of(self, pool: str) -> str:
        """The figures of one pooling as text."""
        check = self.pools[pool]
        if check.f1_fp32 <= check.f1_all:
            return (
                f"in fp32 the refiner's F1 of {check.f1_fp32:.3f} is no better than keeping every candidate "
                f"({check.f1_all:.3f}), so that nothing is known of int8; check it on other volumes"
            )
        return (
            f"of the {self.neighbours} nearest neighbours {check.agreement:.3f} stay ({AGREEMENT:g} are "
            f"needed), and F1 of refinement moves by {check.f1_move:.4f} (below {F1_MOVE:g} is needed)"
        )


def folders(encoder: Encoder) -> list[Path]:
    """Folders where an encoder's int8 may be: next to it, else in the cache."""
    cache = cache_folder()
    beside = [] if encoder.path is None else [encoder.path / "int8"]
    return beside + ([] if cache is None else [cache.parent / "int8" / encoder.sha256])


def find_check(encoder: Encoder) -> Int8Check | None:
    """The stored check of these weights, read once; None if there is none."""
    stored = encoder.kept(_KEPT, lambda: _read(encoder))
    return None if stored is None else stored[1]


def _read(encoder: Encoder) -> tuple[Path, Int8Check] | None:
    for folder in folders(encoder):
        try:
            check = Int8Check.model_validate_json((folder / CHECK).read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValidationError) as problem:
            raise CanvasError(
                f"{folder / CHECK} cannot be read ({type(problem).__name__}); delete {folder} and run "
                "`canvas-fm quantise` again"
            ) from problem
        if check.encoder_sha256 == encoder.sha256:
            return folder, check
    return None


def admitted(encoder: Encoder, pool: str, layer: int | None) -> Int8Check:
    """The check that admits int8; CanvasError says why it is not admitted."""
    check = find_check(encoder)
    if check is None:
        raise CanvasError(
            f"int8 was not checked for {encoder.name}; run `canvas-fm quantise` on volumes with labelled "
            "candidates first, or give precision bf16"
        )
    if layer is not None or pool not in check.pools:
        requested = f"pool {pool}" if layer is None else f"layer {layer}"
        raise CanvasError(
            f"int8 was checked for {', '.join(check.pools)} of the last layer, {requested} was asked for; "
            "give precision bf16 for that"
        )
    if not check.pools[pool].passed:
        raise CanvasError(
            f"int8 is not admitted for {encoder.name}, pool {pool}: {check.figures_of(pool)}; "
            "give precision bf16"
        )
    if check.exact and not native_int8():
        raise CanvasError(
            "int8 was checked on a processor with VNNI, this one has none and rounds otherwise; run "
            "`canvas-fm quantise` here, or give precision bf16"
        )
    return check


def quantised_file(encoder: Encoder) -> Path:
    """Path of the quantised graph's `.xml`, after verifying its checksum."""
    stored = _read(encoder)
    if stored is None:
        raise CanvasError(f"the int8 form of {encoder.name} is gone; run `canvas-fm quantise` again")
    folder, check = stored
    for name, sha256 in check.files.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise CanvasError(
                f"{path} is missing or was changed since the check; run `canvas-fm quantise` again"
            )
    return folder / GRAPH


def keep(encoder: Encoder, check: Int8Check, write: Callable[[Path], None]) -> Int8Check:
    """Store the check and, by `write(folder)`, its graph atomically.

    Returns it as it is kept, with the sha256 of each file.
    """
    for folder in folders(encoder):
        if not _writable(folder.parent):
            continue
        with disk_full_as_error(folder):
            temporary = Path(tempfile.mkdtemp(prefix=".int8.", suffix=".tmp", dir=folder.parent))
            try:
                write(temporary)
                files = {
                    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                    for path in sorted(temporary.iterdir())
                }
                stored = check.model_copy(update={"files": files})
                text = json.dumps(stored.model_dump(mode="json"), indent=1)
                (temporary / CHECK).write_text(text + "\n", encoding="utf-8")
                temporary.chmod(0o755)
                shutil.rmtree(folder, ignore_errors=True)
                temporary.replace(folder)
                sync_path(folder.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        encoder.forget()
        _log.info("what the check found is kept in %s", folder)
        return stored
    tried = " or ".join(map(str, folders(encoder))) or "a cache folder"
    raise CanvasError(f"int8 is kept in {tried}, and none can be written; make one so")


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
