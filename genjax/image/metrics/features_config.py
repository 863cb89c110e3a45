"""Config of where images are compared."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from genjax.config import Config


class PixelFeatures(Config):
    """Pixels averaged to at most 8x8: needs nothing, and sees layout and colour only."""

    kind: Literal["pixels"] = "pixels"
    """Averaged pixels."""


class ClassifierFeatures(Config):
    """The last hidden layer of a small classifier, trained on the run's own labelled images.

    It is trained when a run starts and kept with it. On stacked digits it reads each digit.
    """

    kind: Literal["classifier"] = "classifier"
    """A classifier of the run's classes."""
    width: int = Field(default=24, ge=4)
    """Channels of its first layer; they double twice."""
    steps: int | None = Field(default=None, ge=1)
    """Steps of its training with 128 images each; six epochs, and at least 800, by default."""


class InceptionFeatures(Config):
    """Inception-v3, for FID proper: weights made by `python -m tools.convert_inception`."""

    kind: Literal["inception"] = "inception"
    """Inception-v3 trained on ImageNet."""
    weights: Path
    """The converted weights, an .npz file."""


FeaturesConfig = Annotated[
    PixelFeatures | ClassifierFeatures | InceptionFeatures, Field(discriminator="kind")
]
