"""What the configs of all adversarial games share, whatever the examples: images or clips."""

from typing import Annotated

from pydantic import Field, model_validator

from genjax.config import Config
from genjax.image.augmentation import ADAConfig, AugmentationConfig, NoAugmentation
from genjax.image.losses import LossName
from genjax.run_config import RunConfig

Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Interval = Annotated[int, Field(ge=1)]


class GameDataConfig(Config):
    """How examples are fed."""

    batch_size: int = Field(default=64, ge=1)
    """Images (or clips) of a step, over all devices."""
    mirror: bool = False
    """Mirror half of them left and right: where their mirror images are as likely."""


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
    """Images (or clips) after which a parameter's weight in the average has halved; 0 for no
    average."""
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


class GameConfig(RunConfig):
    """A game between a generator and its discriminators; a subclass says over what examples."""

    data: GameDataConfig
    """The examples and how they are fed."""
    model: Config
    """The networks."""
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

    @model_validator(mode="after")
    def _is_one_game(self) -> "GameConfig":
        objective, annealing = self.objective, self.annealing
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

    def divergence_advice(self) -> str:
        """The usual ways to a calmer game."""
        return (
            "raise objective.r1_gamma (a few times), or lower generator_optimizer.learning_rate "
            "and discriminator_optimizer.learning_rate"
        )
