"""Config of a video GAN's run, and of a request to one for clips."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from genjax.config import Config
from genjax.data.clip_sources import ClipSourceConfig, ShapeMotion
from genjax.image.game_config import GameConfig, GameDataConfig, Weight
from genjax.run_config import EvaluationTiming
from genjax.task import Task
from genjax.video.features_config import ClipFeaturesConfig, ClipPixelFeatures
from genjax.video.model_config import MoCoGANConfig, VGANConfig, VideoModelConfig

ClipMetric = Literal[
    "frechet",
    "kernel",
    "precision_recall",
    "density_coverage",
    "conditioning_accuracy",
    "content_consistency",
    "motion",
    "repetition",
]
"""Families of figures that an evaluation can ask for."""

JudgeName = Literal["frame", "clip"]
"""What a discriminator is shown."""


class ClipDataConfig(GameDataConfig):
    """The clips and how they are fed."""

    source: ClipSourceConfig = ShapeMotion()
    """Where the clips come from."""
    frames: int = Field(default=16, ge=2)
    """Frames of each clip."""


class ClipEvaluationConfig(EvaluationTiming):
    """What is measured: generated clips against real ones."""

    split: Literal["train", "validation"] = "validation"
    """The real clips that generated ones are compared with. Those of the other split, compared
    with them in the same way, give the floor."""
    count: int = Field(default=512, ge=2)
    """How many clips of each kind at most; as many generated as there are real."""
    batch_size: int | None = Field(default=None, ge=1)
    """Clips at a time; as in training by default."""
    features: ClipFeaturesConfig = ClipPixelFeatures()
    """Where clips are compared. Figures carry its name; "fvd" is I3D's alone."""
    metrics: tuple[ClipMetric, ...] = ("frechet", "content_consistency", "motion", "repetition")
    """Which figures: "frechet" (Frechet distance: FVD), "kernel", "precision_recall",
    "density_coverage", "conditioning_accuracy" (of labels asked for); and of time alone:
    "content_consistency" (ACD, average content distance), "motion" (speed, smoothness, and of
    classes that are directions the share that goes there), "repetition" (frozen and looping)."""
    cache: Path | None = Field(default=Path("~/.cache/genjax/features"), validate_default=False)
    """Folder that keeps classifiers between runs, by the content of the data; "none" for none."""


class ClipSamplesConfig(Config):
    """The clips that are drawn during training, always from the same latents."""

    every_clips: int = Field(default=20_000, ge=1)
    """Draw them each time training has used this many clips, and after the last step."""
    count: int = Field(default=16, ge=1)
    """Clips of each kind, generated and real; with classes they are ordered by them."""


class ClipGenerationConfig(Config):
    """A request for clips."""

    count: int = Field(default=8, ge=1)
    """Clips; clip n is the same whatever the count."""
    frames: int | None = Field(default=None, ge=2)
    """Frames of each clip, as in training by default. Models whose motion is recurrent can make
    more, or fewer: the clip begins the same."""
    label: int | None = Field(default=None, ge=0)
    """Class of the clips; all classes in turn by default."""
    input: Path | None = None
    """A clip or a picture whose first frame all clips continue, for runs with image_conditional;
    real clips' first frames by default."""
    format: Literal["webp", "gif", "mp4"] = "webp"
    """File of each clip, and of the grid of all of them."""
    grid: bool = True
    """Also play all clips side by side in one file, and write their frames as a film strip."""
    columns: int | None = Field(default=None, ge=1)
    """Columns of the grid."""
    frames_per_second: float | None = Field(default=None, gt=0.0)
    """How fast clips play, as the data's by default."""

    @model_validator(mode="after")
    def _has_a_grid(self) -> "ClipGenerationConfig":
        if self.columns is not None and not self.grid:
            raise ValueError(f"columns: {self.columns} does nothing without the grid")
        return self


class VideoAdversarialConfig(GameConfig):
    """A generative adversarial network of clips."""

    kind: Literal["video_adversarial"] = "video_adversarial"
    """A generator of clips against discriminators of frames, of clips, or of both."""
    # Nothing is ever assigned to a config, so a narrower type is safe.
    data: ClipDataConfig = ClipDataConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    """The clips and how they are fed."""
    model: VideoModelConfig = MoCoGANConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    """The networks."""
    discriminators: tuple[JudgeName, ...] = ("frame", "clip")
    """Which discriminators play: "frame" judges single frames, "clip" whole clips. The generator
    plays against the sum of their losses."""
    frames_judged: int = Field(default=1, ge=1)
    """How many random frames of each clip the frame discriminator is shown."""
    image_conditional: bool = False
    """Learn to continue a first frame, which is then frame 0 of the clip."""
    mask_weight: Weight = 0.0
    """Weight of the mean of VGAN's mask in the generator's loss; the paper's is 0.1."""
    evaluation: ClipEvaluationConfig = ClipEvaluationConfig()
    """What is measured during training, when, and by `tools.evaluate`."""
    samples: ClipSamplesConfig = ClipSamplesConfig()
    """What is drawn during training."""

    @model_validator(mode="after")
    def _fits_together(self) -> "VideoAdversarialConfig":
        named = self.discriminators
        if not named or len(set(named)) < len(named):
            raise ValueError(
                f'discriminators: {list(named)}; name "frame", "clip" or both, each once'
            )
        masked = isinstance(self.model, VGANConfig)
        if masked and "frame" in named:
            raise ValueError(
                'discriminators: model.kind = "vgan" has none for frames; set '
                'discriminators = ["clip"]'
            )
        if self.mask_weight and not masked:
            raise ValueError(
                f"mask_weight: {self.mask_weight:g} needs a mask, which only "
                f'model.kind = "vgan" has, not "{self.model.kind}"'
            )
        if self.frames_judged > 1 and "frame" not in named:
            raise ValueError(
                f"frames_judged: {self.frames_judged} does nothing without the frame discriminator"
            )
        there = self.data.frames - self.image_conditional
        if self.frames_judged > there:
            raise ValueError(
                f"frames_judged: {self.frames_judged} is more than the {there} frames of a clip "
                "that are generated; lower it, or raise data.frames"
            )
        if self.objective.path_length_weight:
            raise ValueError(
                "objective.path_length_weight: no generator of clips has styles to regularise; "
                "leave it out"
            )
        return self

    def make_task(self, assets: Path | None = None) -> Task:
        """The task of this config; see `RunConfig.make_task`."""
        from genjax.video.video_adversarial import VideoAdversarial

        return VideoAdversarial(self, assets)

    def rehearsal_task(self) -> Task:
        """The same without its clips; see `stand_in_clips` for what is assumed of them."""
        from genjax.data.stand_in_clips import stand_in_clips
        from genjax.video.video_adversarial import VideoAdversarial

        evaluation = self.evaluation.model_copy(
            update={"metrics": ("frechet",), "features": ClipPixelFeatures()}
        )
        config = self.model_copy(
            update={"evaluation": evaluation, "checkpoint": self.checkpoint.without_best()}
        )
        return VideoAdversarial(config, source=stand_in_clips(self.data.source, self.data.frames))

    def generation_schema(self) -> type[Config]:
        """Clips."""
        return ClipGenerationConfig

    def evaluation_every(self) -> int | None:
        """Steps between evaluations."""
        return self.evaluation.every

    def samples_every(self) -> int | None:
        """Steps between sets of sample clips."""
        return max(1, math.ceil(self.samples.every_clips / self.data.batch_size))
