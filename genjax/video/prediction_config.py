"""Config of a run that predicts frames, and of a request to one."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from genjax.config import Config
from genjax.data.clip_sources import ClipSourceConfig, MovingDigits
from genjax.optim import AdamWConfig, OptimizerConfig
from genjax.run_config import EvaluationTiming, RunConfig, SampleTiming
from genjax.task import Task
from genjax.video.conditioning import ConditioningConfig, Inpaint, Predict
from genjax.video.prediction_model_config import ConvLSTMConfig, PredictorConfig
from genjax.video.sampling_schedule import NoSampling, SamplingConfig

Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class PredictionDataConfig(Config):
    """The clips and how they are fed."""

    source: ClipSourceConfig = MovingDigits()
    """Where the clips come from."""
    batch_size: int = Field(default=16, ge=1)
    """Clips of a step, over all devices."""


class PredictionObjectiveConfig(Config):
    """What a prediction is trained for: a weighted sum of errors, each a mean over pixels."""

    l1: Weight = 0.0
    """Weight of the absolute error. It favours the likely over the mean, so less is blurred."""
    l2: Weight = 1.0
    """Weight of the squared error."""
    ssim: Weight = 0.0
    """Weight of one minus the structural similarity (the standard one, by a Gaussian window)."""
    known_frames: bool = True
    """Recurrent networks: also train each prediction of a known frame from those before it."""

    @model_validator(mode="after")
    def _has_a_loss(self) -> "PredictionObjectiveConfig":
        if not (self.l1 or self.l2 or self.ssim):
            raise ValueError("l1, l2 and ssim are all 0, so nothing is trained; raise one of them")
        return self


class PredictionEvaluationConfig(EvaluationTiming):
    """What is measured: predictions against the truth, beside trivial predictions."""

    split: Literal["train", "validation", "test"] = "validation"
    """The clips to predict. Not all sources have a third split for tests."""
    count: int = Field(default=1000, ge=1)
    """How many clips at most."""
    batch_size: int | None = Field(default=None, ge=1)
    """Clips at a time; as in training by default."""
    future: int | None = Field(default=None, ge=1)
    """Frames to predict, if not as many as in training; only of conditioning.kind = "predict"."""
    lpips: Path | None = None
    """Weights of LPIPS, as `tools.convert_lpips` writes them, for a figure of that name."""


class PredictionSamplesConfig(SampleTiming):
    """The clips that are predicted and drawn during training, always the same ones."""

    count: int = Field(default=6, ge=1)
    """How many clips of the evaluation's split."""


class PredictionGenerationConfig(Config):
    """A request for predicted frames."""

    input: Path | None = None
    """A clip (mp4, webm, gif, webp, .. or a folder of frames) to continue, or to fill in between
    its frames, as the run was trained; clips of the run's data by default."""
    count: int | None = Field(default=None, ge=1)
    """How many clips of the run's data, 8 by default."""
    frames: int | None = Field(default=None, ge=1)
    """How many frames to predict after the known ones, also more than in training."""
    split: Literal["train", "validation", "test"] | None = None
    """Which clips of the run's data, those of the evaluation by default."""
    format: Literal["webp", "gif", "mp4"] = "webp"
    """File of each clip."""
    frames_per_second: float | None = Field(default=None, gt=0.0)
    """How fast clips play; as the input, or the run's data, by default."""

    @model_validator(mode="after")
    def _one_source(self) -> "PredictionGenerationConfig":
        if self.input is not None:
            for name in ("count", "split"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} chooses clips of the run's data; leave it or input")
        return self


class PredictionConfig(RunConfig):
    """A predictor of frames."""

    kind: Literal["prediction"] = "prediction"
    """Predict what is unknown of a clip from what is known."""
    data: PredictionDataConfig = PredictionDataConfig()
    """The clips and how they are fed."""
    conditioning: ConditioningConfig = Predict()
    """What is known and what is predicted: the future, frames in between, or holes."""
    model: PredictorConfig = ConvLSTMConfig()
    """The network."""
    objective: PredictionObjectiveConfig = PredictionObjectiveConfig()
    """What it is trained for."""
    sampling: SamplingConfig = NoSampling()
    """When a recurrent network in training reads the truth instead of its predictions."""
    optimizer: OptimizerConfig = AdamWConfig()
    """How the parameters are fitted."""
    evaluation: PredictionEvaluationConfig = PredictionEvaluationConfig()
    """What is measured during training, when, and by `tools.evaluate`."""
    samples: PredictionSamplesConfig = PredictionSamplesConfig()
    """What is drawn during training."""

    @model_validator(mode="after")
    def _fits_together(self) -> "PredictionConfig":
        if not self.model.recurrent:
            if not isinstance(self.sampling, NoSampling):
                raise ValueError(
                    f'sampling.kind = "{self.sampling.kind}" is for networks that read their own '
                    f'predictions; model.kind = "{self.model.kind}" does not: set '
                    'sampling.kind = "none"'
                )
            plain = PredictionObjectiveConfig.model_fields["known_frames"].default
            if self.objective.known_frames != plain:
                raise ValueError(
                    "objective.known_frames is for networks that predict known frames too; "
                    f'model.kind = "{self.model.kind}" does not'
                )
        shape = self.conditioning
        if not isinstance(shape, Predict):
            if self.evaluation.future is not None:
                raise ValueError(
                    f"evaluation.future: {self.evaluation.future} is for conditioning.kind = "
                    f'"predict", not "{shape.kind}"'
                )
            if not isinstance(self.sampling, NoSampling):
                raise ValueError(
                    f'sampling.kind = "{self.sampling.kind}" is for conditioning.kind = '
                    f'"predict", not "{shape.kind}"'
                )
            alone = isinstance(shape, Inpaint) or shape.before == 1
            if alone and not self.objective.known_frames:
                raise ValueError(
                    "objective.known_frames does nothing here: no known frame is predicted from "
                    "one before it"
                )
        elif not isinstance(self.sampling, NoSampling):
            steps = shape.future - 1
            if self.sampling.kind == "reverse":
                steps += shape.past - 1
            if steps == 0:
                raise ValueError(
                    f'sampling.kind = "{self.sampling.kind}" has no step to draw for; predict '
                    "more than one frame, or leave it"
                )
        return self

    def make_task(self, assets: Path | None = None) -> Task:
        """The task of this config; see `RunConfig.make_task`."""
        from genjax.video.prediction import FramePrediction

        del assets
        return FramePrediction(self)

    def rehearsal_task(self) -> Task:
        """The same without its clips; see `stand_in_clips` for what is assumed of them."""
        from genjax.data.stand_in_clips import stand_in_clips
        from genjax.video.prediction import FramePrediction

        config = self.model_copy(
            update={
                "evaluation": self.evaluation.model_copy(update={"lpips": None}),
                "checkpoint": self.checkpoint.without_best(),
            }
        )
        frames = len(self.conditioning.known)
        return FramePrediction(config, source=stand_in_clips(self.data.source, frames))

    def generation_schema(self) -> type[Config]:
        """Clips to continue or to fill."""
        return PredictionGenerationConfig

    def evaluation_every(self) -> int | None:
        """Steps between evaluations."""
        return self.evaluation.every

    def samples_every(self) -> int | None:
        """Steps between samples."""
        return self.samples.every
