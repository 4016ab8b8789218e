"""Training of a detector: volumes and cells to a run with a detector and its threshold."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from canvas_fm.data.points.boxes import as_boxes, read_boxes
from canvas_fm.data.points.boxes import whole as whole_box
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume, ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.checks import cells_of
from canvas_fm.inference.detect.out_of_distribution import LOOKS
from canvas_fm.models.checkpoint import Detector, load, save_detector
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.training.detector.encoder_start import write_start
from canvas_fm.training.detector.phantoms import PhantomCrops
from canvas_fm.training.detector.step import DetectorStep, averaged_weights
from canvas_fm.training.detector.targets import (
    BACKGROUND,
    CELL,
    Labelled,
    TargetPainter,
    draw_labelled,
    shares,
)
from canvas_fm.training.detector.threshold import choose_threshold, detectors_by_unseen_volume
from canvas_fm.training.mae.augment import widen
from canvas_fm.training.mae.crop_set import CropSet, VolumeSource, stacked, take
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe, init_overrides
from canvas_fm.training.run.batch_order import Batch, Batches, CropIndices
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.folder.run_folder import DETECTOR, START, Run
from canvas_fm.training.run.folder.tracking import Tracker
from canvas_fm.training.run.split import (
    check_companions,
    name_volumes,
    open_companion,
    resolve,
    split_volumes,
)
from canvas_fm.training.run.trainer import Report, provenance_of, train

_log = logging.getLogger(__name__)


def train_detector(
    recipe: DetectorRecipe | str | Path,
    volumes: Sequence[Volume | str | Path],
    points: Sequence[Points | str | Path],
    *,
    out: str | Path,
    masks: Sequence[Volume | str | Path] | None = None,
    within: Sequence[Any] | None = None,
    background: Sequence[Volume | str | Path] | None = None,
    fold_detectors: Sequence[Detector | str | Path] = (),
    init: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device = "auto",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    held_out: int | Sequence[str] = (),
    resample_to: ZyxUm | None = None,
    ignore_voxel_size: bool = False,
    show: bool | None = None,
) -> Run:
    """Train a heat-map detector on labelled volumes; `canvas_fm.load` opens what `run.detector` names.

    `points` are the cells of each volume, in its order; so are `masks`, `background` and `within` (files or
    lists of boxes in which all cells are labelled; without them everything is). The threshold is chosen
    over all training volumes; held-out ones are only scored. With `fold_detectors`, which the same recipe
    trained without some of the volumes each, it is chosen on their scores of what they did not see (cross-
    fitting). With `init`, an encoder, the net first learns to predict its tokens on the training volumes,
    without labels (recipe: `init`). The rest is as in `pretrain`.
    """
    changes = [*overrides, *init_overrides(init)]
    resolved = resolve(DetectorRecipe, recipe, changes, seed, held_out, resample_to, ignore_voxel_size)
    if not volumes and (resolved.phantoms is None or resolved.phantoms_a_batch < resolved.training.batch):
        raise CanvasError(
            "no volumes were given; give some with their points, or a recipe with phantoms.share: 1"
        )
    opened = [v if isinstance(v, Volume) else Volume.open(v) for v in volumes]
    labels = _Labels(opened, points, masks, within, background, resolved)
    training, evaluated = split_volumes(name_volumes(opened), resolved) if opened else ([], [])
    folds = [
        detector if isinstance(detector, Detector) else load(detector, kind="detector")
        for detector in fold_detectors
    ]
    unseen = detectors_by_unseen_volume(resolved, labels.of(training), folds)

    def new_task() -> DetectorTraining:
        started = resolved
        if resolved.init is not None:
            start = Path(out) / START
            if not start.exists():  # made once, by the main process, whose turn is first
                write_start(start, resolved, training, device=device, show=show)
            started = resolved.model_copy(update={"start": str(start)})
        return DetectorTraining(started, labels.of(training), labels.of(evaluated), unseen=unseen)

    return train(resolved, out, new_task, device, resume, show)


class DetectorTraining:
    """The task of training a detector, for `train`; `held_out` volumes are for evaluation only."""

    label = "training a detector"
    folder = DETECTOR

    def __init__(
        self,
        recipe: DetectorRecipe,
        training: list[Labelled],
        held_out: list[Labelled],
        unseen: Mapping[str, Detector] | None = None,
    ) -> None:
        self.recipe, self.training, self.held_out = recipe, training, held_out
        self.unseen = unseen or {}
        data, rule = recipe.data, recipe.data.window.rule
        starts = []
        parts = shares(training, data.crops, data.marker_shares)
        for index, (labelled, share) in enumerate(zip(training, parts, strict=True)):
            starts.append(
                draw_labelled(
                    labelled,
                    data.crop_zyx,
                    share,
                    cells=data.cells,
                    hard=data.hard,
                    tolerance_um=recipe.tolerance_um(labelled.source.volume.marker),
                    rule=rule,
                    seed=int(np.random.SeedSequence([recipe.seed, index]).generate_state(1)[0]),
                )
            )
        self.crops = CropSet([labelled.source for labelled in training], starts, data.crop_zyx, rule)
        self.n_crops = len(self.crops) or data.crops

    @property
    def voxel_um(self) -> ZyxUm:
        """Voxel size at which the detector is trained."""
        recipe = self.recipe
        if self.training:
            return self.training[0].um
        assert recipe.phantoms is not None
        return recipe.data.resample_to or recipe.phantoms.voxel_um

    def data(self) -> dict[str, list[dict[str, Any]]]:
        rule = self.recipe.data.window.rule
        drawn = self.crops.identity()
        return {
            "trained on": [volume.identity(rule) | d for volume, d in zip(self.training, drawn, strict=True)],
            "held out": [labelled.identity(rule) for labelled in self.held_out],
        }

    def batches(self, ranks: Ranks, show: bool | None) -> LabelledBatches:
        return LabelledBatches(self.recipe, self.training, self.crops, self.voxel_um, ranks, show)

    def new_step(self, ranks: Ranks, batches: Batches | None) -> DetectorStep:
        return DetectorStep(self.recipe, ranks)

    def prepare(self, show: bool | None) -> None:
        """No preparation: evaluations use whole volumes."""

    def evaluate(self, state: DetectorStep, step: int, tracker: Tracker, run: Run, report: Report) -> None:
        """Metrics and figure of every volume at the newly chosen threshold; writes the detector."""
        self._calibrated(state.result, step, run, report, tracker)

    def ship(self, state: DetectorStep, step: int, run: Run) -> None:
        self._calibrated(state.result, step, run, lambda _: None, None)

    def _calibrated(
        self, net: HeatMapNet, step: int, run: Run, report: Report, tracker: Tracker | None
    ) -> None:
        """Calibrate, score and write the model; no paths or times in it, so it is reproducible."""
        recipe = self.recipe
        training = net.training
        trained = net.eval()
        start = None if recipe.start is None else load(recipe.start, kind="detector")
        if start is not None and recipe.start_share:
            net = averaged_weights(start.net, trained, recipe.start_share).eval()
        voxel_um = self.voxel_um
        chosen = choose_threshold(
            recipe, net, self.training, self.held_out, voxel_um, step, report,
            figures=run.figures if recipe.evaluation.figures and tracker else None, unseen=self.unseen,
        )  # fmt: skip
        if tracker is not None:
            for row in chosen.rows:
                tracker.write(row)
        names = [labelled.source.name for labelled in self.held_out]
        provenance = provenance_of(
            recipe,
            step,
            self.data()["trained on"],
            names,
            scores=chosen.summary(),
            **{LOOKS: chosen.ranges},
        )
        if chosen.scored_by:
            provenance["scored_by"] = chosen.scored_by
        if start is not None:
            # What the weights that it started from had seen, this model has seen too.
            before = start.config.provenance
            provenance["recipe"] |= {"start": start.sha256}
            if recipe.init is not None:
                distilled = before["distilled_from"]
                provenance["recipe"]["init"] |= {"encoder": distilled["encoder"]}
                provenance["distilled_from"] = distilled
            provenance["start_trained_on"] = [
                *(before.get("start_trained_on") or []), *(before.get("trained_on") or [])
            ]  # fmt: skip
        save_detector(
            run.detector,
            net,
            voxel_um=voxel_um,
            threshold=chosen.threshold,
            min_distance_um=recipe.detection.min_distance_um,
            smooth_um=recipe.detection.smooth_um,
            window_rule=recipe.data.window.rule,
            amplitude=recipe.detection.amplitude,
            relative=recipe.detection.relative,
            provenance=provenance,
        )
        trained.train(training)


class LabelledBatches:
    """Batches of crops, windows and labels on the device."""

    def __init__(
        self,
        recipe: DetectorRecipe,
        training: list[Labelled],
        drawn: CropSet,
        voxel_um: ZyxUm,
        ranks: Ranks,
        show: bool | None,
    ) -> None:
        data = recipe.data
        self.drawn, self.device = drawn, ranks.device
        self.painters = [
            TargetPainter(labelled, data.crop_zyx, recipe.target.radius_um) for labelled in training
        ]
        self.phantoms = None
        self.part = ranks.local_rows(recipe.training.batch)
        if recipe.phantoms is not None:
            self.phantoms = PhantomCrops(
                recipe.phantoms, data.crop_zyx, voxel_um, data.window.rule, recipe.target.radius_um,
                recipe.seed, recipe.phantoms_a_batch, data.cells, recipe.model.channels,
            )  # fmt: skip
        self.channels: list[Batches] = [take(drawn, ranks.device, data.resident_gb, show)] if training else []
        for volumes, needed in (
            ([labelled.background for labelled in training], recipe.model.channels == 2),
            ([labelled.mask for labelled in training], recipe.target.kind == "masks"),
        ):
            if needed:
                sources = [
                    VolumeSource(labelled.source.name, volume, labelled.source.resample_to)
                    for labelled, volume in zip(training, volumes, strict=True)
                    if volume is not None
                ]
                other = CropSet(sources, drawn.starts_zyx, data.crop_zyx, data.window.rule)
                self.channels.append(take(other, ranks.device, data.resident_gb, show))
        self.masks = self.channels.pop() if recipe.target.kind == "masks" else None

    def along(self, order: Iterator[CropIndices], first: int = 0) -> Generator[Batch]:
        """Crops, windows and labels for each set of rows; phantoms fill the first rows of a batch."""
        if self.phantoms is None:
            yield from self._real(order)
            return
        batch, n_phantoms = range(self.part.start, self.part.stop), self.phantoms.per_batch
        n_local_phantoms = sum(place < n_phantoms for place in batch)
        real = (
            self._real(rows[n_local_phantoms:] for rows in order) if n_local_phantoms < len(batch) else None
        )
        steps = itertools.count(first) if real else (first + k for k, _ in enumerate(order))
        for step in steps:
            part = slice(self.part.start, self.part.start + n_local_phantoms)
            drawn = [torch.from_numpy(values[part]) for values in self._phantom_parts(step)]
            raw, windows, labels = (values.to(self.device) for values in drawn)
            if real is None:
                yield raw, windows, labels
                continue
            rest = next(real, None)
            if rest is None:
                return
            parts = [raw.to(rest[0].dtype) if rest[0].dtype == raw.dtype else widen(raw), windows, labels]
            yield tuple(torch.cat(pair) for pair in zip(parts, rest, strict=True))

    def _phantom_parts(self, step: int) -> tuple[np.ndarray, ...]:
        assert self.phantoms is not None
        crops, windows, labels = self.phantoms.at(step)
        return crops.view(np.int16), windows, labels

    def _real(self, order: Iterator[CropIndices]) -> Generator[Batch]:
        sets = list(order)  # several readers go along it, each in a thread of its own
        readers = [*self.channels, *([self.masks] if self.masks else [])]
        with ExitStack() as stack:
            streams = [stack.enter_context(closing(reader.along(iter(sets)))) for reader in readers]
            for rows, *parts in zip(sets, *streams, strict=True):
                mask = parts.pop()[0] if self.masks else None
                raw, windows = stacked([(part[0], part[1]) for part in parts])
                yield raw, windows, self._labels(rows, mask)

    def _labels(self, rows: CropIndices, mask: Tensor | None) -> Tensor:
        home = np.searchsorted(self.drawn.first_rows, rows, side="right") - 1
        painted = []
        for row, volume_index in zip(rows, home, strict=True):
            start = self.drawn.starts_zyx[volume_index][row - self.drawn.first_rows[volume_index]]
            painter = self.painters[volume_index]
            painted.append(painter.paint(start) if mask is None else painter.area(start))
        labels = torch.from_numpy(np.stack(painted)).to(self.device)
        if mask is not None:
            labels[(labels == BACKGROUND) & (mask > 0.5)] = CELL
        return labels


class _Labels:
    """Labels of each volume, validated: as many of each kind as there are volumes."""

    def __init__(
        self,
        volumes: Sequence[Volume],
        points: Sequence[Points | str | Path],
        masks: Sequence[Volume | str | Path] | None,
        within: Sequence[Any] | None,
        background: Sequence[Volume | str | Path] | None,
        recipe: DetectorRecipe,
    ) -> None:
        for name, values in (
            ("points", points),
            ("masks", masks),
            ("within", within),
            ("background", background),
        ):
            if values is not None and len(values) != len(volumes):
                raise CanvasError(
                    f"{len(volumes)} volumes and {len(values)} of {name} were given; give one a volume, in "
                    "their order"
                )
        check_companions("masks", masks, recipe.target.kind == "masks", "target.kind is masks")
        if volumes or background:  # of phantoms alone the recipe draws the background too
            check_companions("background", background, recipe.model.channels == 2, "model.channels is 2")
        self._of: dict[int, tuple[Any, ...]] = {}
        for index, volume in enumerate(volumes):
            cells = points[index]
            cells, notes = cells_of(cells if isinstance(cells, Points) else Points.read(cells), "truth")
            for note in notes:
                _log.warning("%s: %s", volume.name, note)
            cells.check_inside(volume.shape_zyx)
            boxes = whole_box(volume.shape_zyx)
            if within is not None:
                path_or_boxes = within[index]
                boxes = (
                    read_boxes(path_or_boxes)
                    if isinstance(path_or_boxes, str | Path)
                    else as_boxes(path_or_boxes)
                )
                _check_boxes(boxes, volume)
            mask = open_companion(volume, masks, index, "mask")
            self._of[id(volume)] = (
                cells.zyx,
                boxes,
                mask,
                open_companion(volume, background, index, "background"),
            )
            try:
                recipe.tolerance_um(volume.marker)
            except ValueError as problem:
                raise CanvasError(f"{volume.path}: {problem}; or name the marker with --marker") from problem

    def of(self, sources: Sequence[VolumeSource]) -> list[Labelled]:
        """The labels of each volume in turn."""
        return [Labelled(source, *self._of[id(source.volume)]) for source in sources]


def _check_boxes(boxes: np.ndarray, volume: Volume) -> None:
    if (boxes[:, :3] < 0).any() or (boxes[:, 3:] > np.asarray(volume.shape_zyx)).any():
        raise CanvasError(
            f"{volume.path}: its labelled boxes reach to {boxes.max(axis=0)[3:].tolist()}, beyond the "
            f"volume, which is {volume.shape_zyx} (z, y, x)"
        )
