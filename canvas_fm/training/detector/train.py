"""Training of a detector: volumes and cells to a run with a detector and its threshold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume, ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.out_of_distribution import LOOKS
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.device import pick_device
from canvas_fm.models.load_model import Detector, load, save_detector
from canvas_fm.training.detector.batches import LabelledBatches
from canvas_fm.training.detector.encoder_start import write_start
from canvas_fm.training.detector.optimizer_step import DetectorStep, averaged_weights, started_from
from canvas_fm.training.detector.targets import Labelled, draw_labelled, shares
from canvas_fm.training.detector.threshold import choose_threshold, detectors_by_unseen_volume
from canvas_fm.training.detector.training_labels import TrainingLabels
from canvas_fm.training.mae.training_crops import CropSet
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe, init_overrides
from canvas_fm.training.run.batch_order import Batches, CropIndices, batch_order
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.folder.run_folder import DETECTOR, START, Run, claim
from canvas_fm.training.run.folder.tracking import METRICS, MetricsLog, Tracker, open_sinks
from canvas_fm.training.run.held_out_split import name_volumes, resolve, split_volumes
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
    labels = TrainingLabels(opened, points, masks, within, background, resolved)
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

    if resolved.steps == 0:
        return _without_training(resolved, Run(Path(out)), new_task, pick_device(device), resume)
    return train(resolved, out, new_task, device, resume, show)


def _without_training(
    recipe: DetectorRecipe,
    run: Run,
    new_task: Callable[[], DetectorTraining],
    device: torch.device,
    resume: bool,
) -> Run:
    """A run of no steps: the weights it starts from with the recipe's scores, and the threshold chosen."""
    with claim(run, recipe, resume=resume):
        task, net = new_task(), started_from(recipe)[0].to(device)
        tracker = Tracker(MetricsLog(run.path / METRICS, None), open_sinks(recipe, run.path, 0))
        try:
            task.calibrate(net, 0, run, _log.info, tracker)
        finally:
            tracker.close()
    return run


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

    def order(self, first: int) -> Iterator[CropIndices]:
        recipe = self.recipe
        return batch_order(self.n_crops, recipe.training.batch, recipe.seed, first, recipe.steps)

    def new_step(self, ranks: Ranks, batches: Batches | None) -> DetectorStep:
        return DetectorStep(self.recipe, ranks)

    def prepare(self, show: bool | None) -> None:
        """No preparation: evaluations use whole volumes."""

    def evaluate(self, state: DetectorStep, step: int, tracker: Tracker, run: Run, report: Report) -> None:
        """Metrics and figure of every volume at the newly chosen threshold; writes the detector."""
        self.calibrate(state.result, step, run, report, tracker)

    def ship(self, state: DetectorStep, step: int, run: Run) -> None:
        self.calibrate(state.result, step, run, lambda _: None, None)

    def calibrate(
        self, net: HeatMapNet, step: int, run: Run, report: Report, tracker: Tracker | None
    ) -> None:
        """Calibrate, score and write the model; no paths or times in it, so it is reproducible."""
        recipe = self.recipe
        training = net.training
        trained = net.eval()
        start_net, starts = started_from(recipe) if recipe.starts else (None, [])
        if start_net is not None and recipe.start_share:
            net = averaged_weights(start_net, trained, recipe.start_share).eval()
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
        if starts:
            # What the weights that it started from had seen, this model has seen too.
            before = [start.config.provenance for start in starts]
            identities = [start.sha256 for start in starts]
            provenance["recipe"] |= {"start": identities[0] if isinstance(recipe.start, str) else identities}
            if recipe.init is not None:
                distilled = before[0]["distilled_from"]
                provenance["recipe"]["init"] |= {"encoder": distilled["encoder"]}
                provenance["distilled_from"] = distilled
            provenance["start_trained_on"] = [
                volume
                for each in before
                for volume in [*(each.get("start_trained_on") or []), *(each.get("trained_on") or [])]
            ]
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
