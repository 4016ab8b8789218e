"""A 3D ResNet trained from nothing on the clicks of a simulated review, as what it is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.volume.volume import Volume
from canvas_fm.training.finetune.resnet_method import ResNetClassifier


class ClickedCrops:
    """Crops of candidates and what was clicked of them, as the method of the comparison reads them."""

    def __init__(self, volume: Volume, zyx: np.ndarray, label: np.ndarray) -> None:
        self.zyx, self.window, self.is_cell = zyx, volume.window, label == 1
        self._volume, self._readers = volume, dict[tuple[int, int, int], CropReader]()

    def crops(self, rows: np.ndarray, crop_zyx: tuple[int, int, int]) -> np.ndarray:
        reader = self._readers.setdefault(crop_zyx, CropReader(self._volume, crop_zyx))
        return self.window.apply(reader.read_points(self.zyx[rows]))


def resnet_p_cell(volume: Volume, zyx: np.ndarray, label: np.ndarray, seed: int) -> np.ndarray:
    """P(cell) of every candidate by the product's own ResNet, trained on rows with a label of 0 or 1."""
    method = ResNetClassifier(device="cpu")
    task: Any = ClickedCrops(volume, zyx, label)
    net = method.train(task, np.flatnonzero(label >= 0), seed)
    p = np.empty(len(zyx))
    with torch.inference_mode():
        for rows in np.array_split(np.arange(len(zyx)), -(-len(zyx) // 128)):
            crops = torch.from_numpy(task.crops(rows, method.config.crop_zyx))[:, None]
            p[rows] = torch.sigmoid(net(crops)).numpy()
    return p
