"""When a recurrent predictor in training reads the truth, and when what it predicted itself.

Pure functions of the step, so that a run that goes on after a stop draws what it would have drawn.

Letters: B batch, F the steps of a roll-out whose input is drawn.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
from pydantic import Field, model_validator

from genjax.config import Config
from genjax.video.conditioning import Known

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Step = Int[Array, ""] | int


class NoSampling(Config):
    """The network reads its own predictions wherever frames are unknown, as in use."""

    kind: Literal["none"] = "none"
    """No truth after the known frames."""


class ScheduledSampling(Config):
    """Scheduled sampling (Bengio et al. 2015): less and less truth in place of predictions."""

    kind: Literal["scheduled"] = "scheduled"
    """At first the truth, at last the network's own predictions."""
    start: Share = 1.0
    """Probability of the truth at step 0."""
    steps: int = Field(default=50_000, ge=1)
    """Steps in which it falls to 0, along a line."""


class ReverseScheduledSampling(Config):
    """Reverse scheduled sampling (Wang et al. 2021, PredRNN-V2).

    In the known frames after the first one, the truth comes in more and more, so that at first the
    network learns to remember over gaps. After them it fades out, along a line from `begin` on.
    """

    kind: Literal["reverse"] = "reverse"
    """Both halves of a clip are drawn."""
    start: Share = 0.5
    """Probability of the truth at first, in both halves."""
    begin: int = Field(default=25_000, ge=0)
    """Step at which the probability among known frames starts to rise."""
    steps: int = Field(default=50_000, ge=1)
    """Step from which known frames are always read, and unknown ones never."""
    rise: float = Field(default=2_500.0, gt=0.0)
    """Steps in which the distance from certainty shrinks by a factor of e."""

    @model_validator(mode="after")
    def _begins_before_its_end(self) -> "ReverseScheduledSampling":
        if self.begin >= self.steps:
            raise ValueError(f"begin: {self.begin} is not before steps, {self.steps}")
        return self


Sampling = NoSampling | ScheduledSampling | ReverseScheduledSampling

SamplingConfig = Annotated[Sampling, Field(discriminator="kind")]


def truth_probabilities(config: Sampling, known: Known, step: Step) -> Float[Array, "F"] | None:
    """The probability that each of the last F inputs of a roll-out is the true frame.

    Args:
        config: the schedule.
        known: which frames are known, the past before the future; a roll-out reads all but the
            last one.
        step: of training.

    Returns:
        One probability a step, or None where nothing is drawn.
    """
    past = known.index(False) if False in known else len(known)
    step = jnp.asarray(step, jnp.float32)
    future = len(known) - 1 - past
    match config:
        case NoSampling():
            return None
        case ScheduledSampling():
            if future <= 0:
                return None
            share = config.start * jnp.maximum(1.0 - step / config.steps, 0.0)
            return jnp.broadcast_to(share, (future,))
        case ReverseScheduledSampling():
            rising = 1.0 - (1.0 - config.start) * jnp.exp(-(step - config.begin) / config.rise)
            context = jnp.where(step < config.begin, config.start, rising)
            context = jnp.where(step < config.steps, context, 1.0)
            left = (config.steps - step) / (config.steps - config.begin)
            share = config.start * jnp.clip(left, 0.0, 1.0)
            both = [jnp.full((past - 1,), context), jnp.full((max(future, 0),), share)]
            drawn = jnp.concatenate(both)
            return drawn if len(drawn) else None


def draw_feed(
    probabilities: Float[Array, "F"] | None, key: Key[Array, ""], batch_size: int
) -> Bool[Array, "B F"] | None:
    """Which inputs are the true frame, drawn for each clip and step; see `truth_probabilities`."""
    if probabilities is None:
        return None
    return jax.random.bernoulli(key, probabilities, (batch_size, len(probabilities)))
