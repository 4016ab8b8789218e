"""A detector whose scores take the blob's amplitude in, on the scale of a few labelled cells."""

from __future__ import annotations

import numpy as np

from canvas_fm.heads.features.amplitude import SpotAmplitude
from canvas_fm.models.folder.network_config import AmplitudeConfig
from canvas_fm.models.load_model import Detector
from canvas_fm.training.detector.targets import Labelled

# Over 44 domains .25, .5, 1 and 1.5 and a sigma of 5 or 7 um gain alike; this is the most even one.
WEIGHT = 0.5
# With fewer labelled cells it is not tried: of 26 draws of 10 cells three lost more than .02 of F1, one .30,
# and by the threshold alone one.
FEWEST_CELLS = 15
_SIGMA = 0.625  # of the least distance of two cells: 5 um where that is 8


def amplitude_detector(detector: Detector, labelled: Labelled) -> Detector | None:
    """The detector with half the logarithm of the blob's amplitude added to the logits of its scores.

    The unit is the median amplitude of the labelled cells: such a cell keeps its score. None for a detector
    whose scores take amplitude in already, or are relative to the strongest around.
    """
    config = detector.config
    if config.amplitude is not None or config.relative is not None:
        return None
    sigma_um = _SIGMA * config.min_distance_um
    log_amplitude = SpotAmplitude(sigma_um, config.window_rule).at(labelled.source.volume, labelled.inner_zyx)
    unit = float(np.exp(-np.median(log_amplitude)))
    amplitude = AmplitudeConfig(sigma_um=sigma_um, weight=WEIGHT, unit=unit)
    return Detector(config.model_copy(update={"amplitude": amplitude}), detector.net)
