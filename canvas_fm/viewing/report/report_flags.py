"""Options of `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from canvas_fm.files.option_sets import AnySequence, Flag, Positive, Size
from canvas_fm.heads.refine.fit_flags import Correction
from canvas_fm.inference.run_flags import DetectorRun, Pool

Method = Literal["score", "shape", "pca", "random", "encoder", "finetune", "resnet"]


class ReportOptions(DetectorRun):
    """Options of a report: methods, folds, heads and networks.

    Heads on features are also fitted on the volumes at each contrast of `augment_contrast`. Neither
    `ratios` nor the method `finetune` look at scores, and `finetune` sees the volumes as they are.
    """

    pool: Pool | None = Field(None, description="default: the encoder's own")
    layer: Positive | None = Field(None, description="of the encoder; default last")
    correction: Correction = Field("none", description="of every volume's features by its own candidates")
    head: Literal["logistic", "mlp"] = Field("logistic", description="on features")
    C: Size | None = Field(
        None, description="inverse of the penalty of heads on features; default: chosen on training volumes"
    )
    detector_score: bool = Field(
        False,
        description="also compare the detector's score at the candidates, alone and beside the features, as "
        "`refine fit --detector-score` does; --ratios and finetune go without",
    )
    candidate_score: bool = Field(
        False,
        description="also compare the features with the candidate score, as `refine fit "
        "--candidate-score` does",
    )
    augment_contrast: tuple[Size, ...] = Field(
        (),
        description="fit heads on features of the volumes at these contrasts too, as `refine fit "
        "--augment-contrast` does; finetune, which is no such head, goes without",
    )
    ratios: Annotated[tuple[Size, ...], Flag("R")] = Field(
        (),
        description="with --encoder and --detector: try these contribution ratios too, of what --cut names",
    )
    cut: Annotated[tuple[Literal["mae", "detector"], ...], AnySequence] = Field(
        ("mae",), description="the blocks of which --ratios keep a share"
    )
    unfreeze: Annotated[Positive, Flag("K")] = Field(
        1, description="blocks of the encoder that the method finetune fits too"
    )
    augment: bool = Field(False, description="finetune flips, turns and brightens crops by chance; slower")
    resnet_width: Positive = Field(16, description="64 is cellfinder's; default 16")
    resnet_crop_zyx: Annotated[
        tuple[Positive, Positive, Positive], AnySequence, Flag(name="--resnet-crop")
    ] = Field((16, 32, 32), description="voxels that the ResNet sees")
    resnet_steps: Positive = Field(2000, description="at most; default 2000")
    features: Annotated[Path | None, Flag("DIR")] = Field(
        None, description="folder in which features are kept for next time"
    )
