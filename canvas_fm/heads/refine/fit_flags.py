"""Options of `refine fit`: features, head, calibration, threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from canvas_fm.data.volume.window import DEFAULT_RULE, WindowRule
from canvas_fm.files.option_sets import Flag, Options, Positive, Size
from canvas_fm.inference.run_flags import BatchedRun, Pool

if TYPE_CHECKING:
    from canvas_fm.heads.features.amplitude import SpotAmplitude
    from canvas_fm.heads.refine.refiner import Refiner

Correction = Literal["none", "centre", "standardise", "whiten"]


class FitOptions(Options):
    """Options for fitting a refiner."""

    variant: Literal["concat", "mae", "detector", "shape", "scores"] | None = Field(
        None,
        description="feature blocks that are used; scores: detector score, amplitude and candidate score "
        "alone. Default: concat of what models are given",
    )
    shape: bool = Field(
        False,
        description="look at intensity, contrast and shape of each spot too, beside any variant; needs no "
        "model, and carries best to brains of other staining",
    )
    amplitude_um: Annotated[Size, Flag("SIGMA")] | None = Field(
        None,
        description="use how bright the spot is against its volume as a further feature of any variant, by a "
        "Laplacian of a Gaussian of this sigma; needs no model",
    )
    amplitude_unit: Literal["percentiles", "median"] = Field(
        "percentiles",
        description="of --amplitude-um: the width of the volume's intensity window, or its median",
    )
    cut: Literal["mae", "detector"] | None = Field(
        None, description="the block that --ratio cuts; default mae"
    )
    ratio: Annotated[Size, Flag("R")] = Field(
        1.0, description="share of the cut block's columns that is kept, the first ones"
    )
    reduce: Literal["columns", "pca"] = Field(
        "columns", description="pca: the first principal components instead of the first columns"
    )
    pool: Pool | None = Field(None, description="of the encoder; default: what its config names")
    layer: int | None = Field(None, description="of the encoder, its blocks count from 1; default last")
    correction: Correction = Field("none", description="of every brain by its own candidates")
    candidate_score: bool = Field(
        False,
        description="use the candidate score as a further feature of any variant; good where its level "
        "carries from brain to brain (one marker, one detector), harmful where it does not. "
        "Candidates to be refined then need that column",
    )
    score_column: Annotated[str | None, Flag("COLUMN")] = Field(
        None, description="column of the candidate score; default score, p_cell, log_score"
    )
    detector_score: bool = Field(
        False,
        description="with --detector: use its score at each candidate as a further feature of any variant; "
        "what tells most where the detector is a good one, and candidates need z, y, x alone",
    )
    detector_brightness: bool = Field(
        False,
        description="with --detector-score: compare each spot's brightness with that of the detector's "
        "detections around it, as in its own detections' scores; for detectors whose scores do that "
        "(detector-all, detector-phantoms, detector-cfos)",
    )
    augment_contrast: tuple[Size, ...] = Field(
        (),
        description="learn from the volumes as if stained so many times as strongly too, such as 0.6 1.6, so "
        "that model and threshold hold for dimmer and brighter ones; features are computed for each",
    )
    unfreeze: Annotated[int, Flag("K")] = Field(
        0,
        ge=0,
        description="fit the encoder's last K blocks too; the refiner carries them. Default 0: the encoder "
        "as it is",
    )
    augment: bool = Field(
        False,
        description="with --unfreeze: flip, turn and brighten crops by chance; slower, all blocks run in "
        "every step",
    )
    whiten: bool = Field(False, description="decorrelate columns, by the training volumes")
    head: Literal["logistic", "mlp", "trees", "blend", "sum"] | None = Field(
        None,
        description="the model on the features; blend: boosted trees on shape and a logistic model on the "
        "other blocks, weighed by held-out volumes; sum: the first of two scores and a share of the second, "
        "or one score, by F1 on held-out volumes. Default: blend with --shape, else logistic",
    )
    ignore_candidate_score: bool = Field(
        False,
        description="do not look at the candidates' own score even where it ranks held-out volumes better "
        "than the refiner; by default it is then blended in, and candidates to be refined need it",
    )
    C: Size | None = Field(
        None,
        description="inverse of the logistic model's penalty, of a sum the second score's share; default: "
        "chosen by cross-validation",
    )
    calibration: Literal["temperature", "isotonic", "none"] = Field(
        "temperature", description="of the probabilities"
    )
    hold_out: Literal["brains", "regions"] = Field(
        "brains",
        description="left out in turn for calibration and threshold; regions (of --roi) for two unlike "
        "brains",
    )
    folds: Positive = Field(5, description="of cross-validation, at most one a volume")
    force_random_split: bool = Field(
        False,
        description="with one volume and no boxes: split its rows at random, which the report then marks",
    )
    seed: int = Field(0, description="of folds and MLP")

    @model_validator(mode="after")
    def _what_goes_together(self) -> FitOptions:
        if self.unfreeze and (self.candidate_score or self.detector_score):
            flag = "--candidate-score" if self.candidate_score else "--detector-score"
            raise ValueError(
                f"{flag} goes with the encoder as it is: beside a score that tells most, --unfreeze has "
                "little to learn from; give one of the two"
            )
        if self.detector_brightness and not self.detector_score:
            raise ValueError("--detector-brightness is part of --detector-score: give that flag too")
        if self.unfreeze and self.amplitude_um is not None:
            raise ValueError("--amplitude-um goes with the encoder as it is; leave --unfreeze out")
        if self.unfreeze and (self.shape or self.head in ("trees", "blend", "sum")):
            raise ValueError(
                "--unfreeze fits blocks under a logistic model or an MLP; leave --shape and --head "
                f"{self.head or 'blend'} out"
            )
        if self.candidate_score and self.ignore_candidate_score:
            raise ValueError("--candidate-score and --ignore-candidate-score contradict; give one")
        if self.unfreeze and self.augment_contrast:
            raise ValueError(
                "--augment-contrast goes with the encoder as it is; with --unfreeze, --augment brightens "
                "crops by chance"
            )
        if self.score_column and not self.candidate_score:
            raise ValueError("--score-column names what --candidate-score looks at; give that flag too")
        return self

    @property
    def amplitude(self) -> SpotAmplitude | None:
        """The amplitude that is measured, None without."""
        from canvas_fm.heads.features.amplitude import SpotAmplitude

        if self.amplitude_um is None:
            return None
        rule = DEFAULT_RULE if self.amplitude_unit == "percentiles" else WindowRule("median", 0.0, 1.0)
        return SpotAmplitude(self.amplitude_um, rule)

    def refiner(self, *, encoder: bool, detector: bool) -> Refiner:
        """An unfitted refiner for features of an encoder, a detector or both."""
        from canvas_fm.heads.refine.refiner import Refiner

        only_block = "mae" if encoder else "detector" if detector else "shape"
        variant = self.variant or ("concat" if encoder and detector else only_block)
        cut = self.cut
        if cut is None and self.ratio < 1:
            cut = "detector" if variant == "detector" else "mae"
        return Refiner(
            variant,
            cut=cut,
            ratio=self.ratio,
            reduce=self.reduce,
            correction=self.correction,
            whiten=self.whiten,
            model=self.head or ("blend" if self.shape else "logistic"),
            C=self.C,
            calibration=self.calibration,
            folds=self.folds,
            hold_out=self.hold_out,
            force_random=self.force_random_split,
            random_state=self.seed,
        )


class FitAndRunOptions(FitOptions, BatchedRun):
    """Options for fitting a refiner and for running the models behind its features."""
