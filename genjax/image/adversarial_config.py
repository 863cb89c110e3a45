"""Config of an adversarial run, and of a request to one for images."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from genjax.config import Config
from genjax.data.image_sources import BuiltinDigits, ImageSourceConfig
from genjax.image.game_config import GameConfig, GameDataConfig
from genjax.image.metrics.features_config import FeaturesConfig, PixelFeatures
from genjax.image.model_config import DCGANConfig, ModelConfig, StyleGAN2Config
from genjax.run_config import EvaluationTiming
from genjax.task import Task

MetricName = Literal[
    "frechet",
    "kernel",
    "precision_recall",
    "density_coverage",
    "inception_score",
    "conditioning_accuracy",
    "path_length",
    "modes",
]
"""Families of figures that an evaluation can ask for."""


class ImageDataConfig(GameDataConfig):
    """The images and how they are fed."""

    source: ImageSourceConfig = BuiltinDigits()
    """Where the images come from."""


class ImageEvaluationConfig(EvaluationTiming):
    """What is measured: generated images against real ones."""

    split: Literal["train", "validation"] = "train"
    """The real images that generated ones are compared with. Those of the other split, compared
    with them in the same way, give the floor."""
    count: int = Field(default=10_000, ge=2)
    """How many images of each kind at most; as many generated as there are real."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images at a time; as in training by default."""
    features: FeaturesConfig = PixelFeatures()
    """Where images are compared. Figures carry its name; "fid" and "kid" are Inception-v3's."""
    metrics: tuple[MetricName, ...] = ("frechet",)
    """Which figures: "frechet" (Frechet distance: FID), "kernel" (KID), "precision_recall",
    "density_coverage", "inception_score", "conditioning_accuracy" (of labels asked for), "modes"
    (of stacked digits or mixtures of Gaussians), "path_length" (PPL)."""
    truncation: float = Field(default=1.0, ge=0.0, le=1.0)
    """Truncation psi of the generated images (StyleGAN2)."""
    cache: Path | None = Field(default=Path("~/.cache/genjax/features"), validate_default=False)
    """Folder that keeps classifiers and features of real images between runs, by the content of
    the data; "none" for none."""


class ImageSamplesConfig(Config):
    """The grid of images that is drawn during training, always from the same latents."""

    every_images: int = Field(default=50_000, ge=1)
    """Draw it each time training has used this many images, and after the last step."""
    count: int = Field(default=64, ge=1)
    """Images in the grid. With classes each row has one class."""
    truncation: float = Field(default=1.0, ge=0.0, le=1.0)
    """Truncation psi (StyleGAN2)."""


class ImageGenerationConfig(Config):
    """A request for images."""

    count: int | None = Field(default=None, ge=1)
    """Images, 64 by default; image n is the same whatever the count. Of an interpolation: images
    that it goes by, 6 by default."""
    mode: Literal["images", "mixing", "interpolation"] = "images"
    """Single images and a grid of them; a grid whose images take coarse styles from their row and
    fine ones from their column (StyleGAN2); or a looping film from image to image."""
    label: int | None = Field(default=None, ge=0)
    """Class of the images; all classes in turn by default."""
    truncation: float = Field(default=1.0, ge=-2.0, le=2.0)
    """Pull styles towards the average: 1 not at all, 0 all the way (StyleGAN2)."""
    truncation_cutoff: int | None = Field(default=None, ge=1)
    """Only the styles of the first so many layers."""
    columns: int | None = Field(default=None, ge=1)
    """Columns of the grid; of a mixing grid 6 by default."""
    rows: int | None = Field(default=None, ge=1)
    """Rows of a mixing grid, 6 by default."""
    mix_layers: str | None = None
    """Layers that a mixing grid takes from the column, such as "4-7" or "0,1"; by default the upper
    half."""
    frames: int | None = Field(default=None, ge=2)
    """Frames of an interpolation, 120 by default."""
    frames_per_second: float | None = Field(default=None, gt=0.0)
    """How fast an interpolation plays, 24 by default."""
    format: Literal["webp", "gif", "mp4"] | None = None
    """File of an interpolation, webp by default."""
    space: Literal["w", "z"] | None = None
    """Where an interpolation goes: along a smooth curve of styles (w), by default where the model
    has them, or along great circles of latents (z)."""

    @model_validator(mode="after")
    def _fits_the_mode(self) -> "ImageGenerationConfig":
        only = {
            "count": ("images", "interpolation"),
            "columns": ("images", "mixing"),
            "rows": ("mixing",),
            "mix_layers": ("mixing",),
            "frames": ("interpolation",),
            "frames_per_second": ("interpolation",),
            "format": ("interpolation",),
            "space": ("interpolation",),
        }
        for name, modes in only.items():
            if getattr(self, name) is not None and self.mode not in modes:
                raise ValueError(
                    f"{name} does nothing in mode {self.mode!r}; it is for {' and '.join(modes)}"
                )
        return self


class AdversarialConfig(GameConfig):
    """A generative adversarial network of images."""

    kind: Literal["adversarial"] = "adversarial"
    """A generator and a discriminator, trained against each other."""
    # Nothing is ever assigned to a config, so a narrower type is safe.
    data: ImageDataConfig = ImageDataConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    """The images and how they are fed."""
    model: ModelConfig = DCGANConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    """The two networks."""
    evaluation: ImageEvaluationConfig = ImageEvaluationConfig()
    """What is measured during training, when, and by `tools.evaluate`."""
    samples: ImageSamplesConfig = ImageSamplesConfig()
    """What is drawn during training."""

    @model_validator(mode="after")
    def _fits_together(self) -> "AdversarialConfig":
        objective = self.objective
        styled = isinstance(self.model, StyleGAN2Config)
        if objective.path_length_weight and not styled:
            raise ValueError(
                f"objective.path_length_weight: {objective.path_length_weight:g} needs a generator "
                f'with styles; use model.kind = "stylegan2", not "{self.model.kind}", or leave it'
            )
        if not styled and (self.evaluation.truncation != 1.0 or self.samples.truncation != 1.0):
            raise ValueError(
                "evaluation.truncation and samples.truncation need styles, which only "
                f'model.kind = "stylegan2" has, not "{self.model.kind}"'
            )
        return self

    def make_task(self, assets: Path | None = None) -> Task:
        """The task of this config; see `RunConfig.make_task`."""
        from genjax.image.adversarial import Adversarial

        return Adversarial(self, assets)

    def rehearsal_task(self) -> Task:
        """The same without its images; see `stand_in_images` for what is assumed of them."""
        from genjax.data.stand_in_images import stand_in_images
        from genjax.image.adversarial import Adversarial

        evaluation = self.evaluation.model_copy(
            update={"metrics": ("frechet",), "features": PixelFeatures()}
        )
        config = self.model_copy(
            update={"evaluation": evaluation, "checkpoint": self.checkpoint.without_best()}
        )
        return Adversarial(config, source=stand_in_images(self.data.source))

    def generation_schema(self) -> type[Config]:
        """Images, mixing grids, interpolations."""
        return ImageGenerationConfig

    def evaluation_every(self) -> int | None:
        """Steps between evaluations."""
        return self.evaluation.every

    def samples_every(self) -> int | None:
        """Steps between grids of samples."""
        return max(1, math.ceil(self.samples.every_images / self.data.batch_size))
