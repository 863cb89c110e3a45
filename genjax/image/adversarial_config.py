"""Config of an adversarial run, and of a request to one for images."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from genjax.config import Config
from genjax.data.image_sources import BuiltinDigits, ImageSourceConfig
from genjax.image.augmentation import ADAConfig, AugmentationConfig, NoAugmentation
from genjax.image.losses import LossName
from genjax.image.metrics.features_config import FeaturesConfig, PixelFeatures
from genjax.image.model_config import DCGANConfig, ModelConfig, StyleGAN2Config
from genjax.run_config import EvaluationTiming, RunConfig
from genjax.task import Task

Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Interval = Annotated[int, Field(ge=1)]

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


class ImageDataConfig(Config):
    """The images and how they are fed."""

    source: ImageSourceConfig = BuiltinDigits()
    """Where the images come from."""
    batch_size: int = Field(default=64, ge=1)
    """Images of a step, over all devices."""
    mirror: bool = False
    """Mirror half of the images left and right: where their mirror images are as likely."""


class ObjectiveConfig(Config):
    """What the two networks play for, and what keeps the game stable."""

    loss: LossName = "non_saturating"
    """The adversarial loss. "relativistic" judges each image against a real one (R3GAN)."""
    discriminator_steps: int = Field(default=1, ge=1)
    """Discriminator steps, each on its own real images, for a generator step."""
    r1_gamma: Weight = 0.0
    """Weight of half the squared gradient of D at real images (R1); 0 for none."""
    r2_gamma: Weight = 0.0
    """The same at generated images (R2)."""
    gradient_penalty: Weight = 0.0
    """Weight of WGAN-GP's penalty on gradients' distance from norm one; 10 is usual."""
    penalty_interval: Interval = 1
    """Take the penalties every so many steps, that much stronger, in a step of their own."""
    path_length_weight: Weight = 0.0
    """Weight of path-length regularisation of StyleGAN2's generator; 2 is usual."""
    path_length_interval: Interval = 4
    """Take it every so many steps."""
    path_length_share: int = Field(default=2, ge=1)
    """On the batch divided by this, to save memory."""

    @model_validator(mode="after")
    def _path_lengths_are_asked_for(self) -> "ObjectiveConfig":
        plain = ObjectiveConfig.model_fields
        for name in ("path_length_interval", "path_length_share"):
            if not self.path_length_weight and getattr(self, name) != plain[name].default:
                raise ValueError(
                    f"{name}: {getattr(self, name)} does nothing without path_length_weight"
                )
        return self

    @property
    def has_penalties(self) -> bool:
        """Whether the discriminator has any."""
        return bool(self.r1_gamma or self.r2_gamma or self.gradient_penalty)


class AdamConfig(Config):
    """Adam (Kingma & Ba 2015) without weight decay."""

    learning_rate: float = Field(default=2e-4, gt=0.0, allow_inf_nan=False)
    """Step size; where a regulariser takes steps of its own it is corrected for them, and so are
    the betas."""
    beta1: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of the gradient's average."""
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Decay of the squared gradient's average."""
    epsilon: float = Field(default=1e-8, gt=0.0, allow_inf_nan=False)
    """Added to the root of the second moment."""


class AverageConfig(Config):
    """The average of the generator that evaluation and samples use."""

    half_life_images: float = Field(default=10_000.0, ge=0.0, allow_inf_nan=False)
    """Images after which a parameter's weight in the average has halved; 0 for no average."""
    ramp_up: float | None = Field(default=0.05, gt=0.0)
    """Early on the half-life is this share of the images seen; "none" for no ramp."""


class AnnealingConfig(Config):
    """What changes over a run: from its configured value along half a cosine, then constant.

    R3GAN's recipe moves all of these together.
    """

    images: int | None = Field(default=None, ge=1)
    """Images at which the change is complete; "none" leaves everything as it is."""
    learning_rate: float = Field(default=1.0, gt=0.0)
    """Both learning rates end at this many times their configured value."""
    gamma: float = Field(default=1.0, ge=0.0)
    """r1_gamma and r2_gamma end at this many times theirs."""
    beta2: float | None = Field(default=None, ge=0.0, lt=1.0)
    """beta2 of both optimizers ends here."""
    half_life: float = Field(default=1.0, gt=0.0)
    """The average's half-life ends at this many times its configured value."""
    augmentation: float | None = Field(default=None, ge=0.0, le=1.0)
    """A held augmentation.probability ends here."""

    @model_validator(mode="after")
    def _has_a_length(self) -> "AnnealingConfig":
        changes = self.model_dump(exclude={"images"})
        still = AnnealingConfig.model_construct().model_dump(exclude={"images"})
        if self.images is None and changes != still:
            raise ValueError("images is not set, so nothing changes; give the images it takes")
        if self.images is not None and changes == still:
            raise ValueError(f"images: {self.images} does nothing while all else stays the same")
        return self


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


class AdversarialConfig(RunConfig):
    """A generative adversarial network of images."""

    kind: Literal["adversarial"] = "adversarial"
    """A generator and a discriminator, trained against each other."""
    data: ImageDataConfig = ImageDataConfig()
    """The images and how they are fed."""
    model: ModelConfig = DCGANConfig()
    """The two networks."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What they play for."""
    augmentation: AugmentationConfig = NoAugmentation()
    """How real and generated images are changed before the discriminator sees them."""
    generator_optimizer: AdamConfig = AdamConfig()
    """How the generator is fitted."""
    discriminator_optimizer: AdamConfig = AdamConfig()
    """How the discriminator is fitted."""
    average: AverageConfig = AverageConfig()
    """The average of the generator."""
    annealing: AnnealingConfig = AnnealingConfig()
    """What changes over the run."""
    evaluation: ImageEvaluationConfig = ImageEvaluationConfig()
    """What is measured during training, when, and by `tools.evaluate`."""
    samples: ImageSamplesConfig = ImageSamplesConfig()
    """What is drawn during training."""

    @model_validator(mode="after")
    def _fits_together(self) -> "AdversarialConfig":
        objective, annealing = self.objective, self.annealing
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
        if objective.penalty_interval > 1 and not objective.has_penalties:
            raise ValueError(
                f"objective.penalty_interval: {objective.penalty_interval} does nothing without "
                "r1_gamma, r2_gamma or gradient_penalty"
            )
        held = (
            isinstance(self.augmentation, ADAConfig) and self.augmentation.probability is not None
        )
        if annealing.augmentation is not None and not held:
            raise ValueError(
                "annealing.augmentation needs a probability to start from: set "
                'augmentation.kind = "ada" and augmentation.probability'
            )
        if annealing.gamma != 1.0 and not (objective.r1_gamma or objective.r2_gamma):
            raise ValueError(
                "annealing.gamma changes r1_gamma and r2_gamma of the objective, which are both 0"
            )
        return self

    def make_task(self, assets: Path | None = None) -> Task:
        """The task of this config; see `RunConfig.make_task`."""
        from genjax.image.adversarial import Adversarial

        return Adversarial(self, assets)

    def generation_schema(self) -> type[Config]:
        """Images, mixing grids, interpolations."""
        return ImageGenerationConfig

    def divergence_advice(self) -> str:
        """The usual ways to a calmer game."""
        return (
            "raise objective.r1_gamma (a few times), or lower generator_optimizer.learning_rate "
            "and discriminator_optimizer.learning_rate"
        )

    def evaluation_every(self) -> int | None:
        """Steps between evaluations."""
        return self.evaluation.every

    def samples_every(self) -> int | None:
        """Steps between grids of samples."""
        return max(1, math.ceil(self.samples.every_images / self.data.batch_size))
