"""Imports of timm for trainings."""

from __future__ import annotations

from canvas_fm.models.pretrained.torchvision_operators import declare_missing_operators

declare_missing_operators()

from timm.optim import param_groups_weight_decay  # noqa: E402
from timm.scheduler import CosineLRScheduler  # noqa: E402
from timm.utils import ModelEmaV3  # noqa: E402

__all__ = ["CosineLRScheduler", "ModelEmaV3", "param_groups_weight_decay"]
