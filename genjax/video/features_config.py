"""Config of where clips are compared."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from genjax.config import Config
from genjax.video.i3d import Resize


class ClipPixelFeatures(Config):
    """Pixels averaged to at most 4 frames of 4x4: needs nothing, sees layout, colour, drift."""

    kind: Literal["pixels"] = "pixels"
    """Averaged pixels."""


class ClipClassifierFeatures(Config):
    """The last hidden layer of a small classifier, trained on the run's own labelled clips.

    It is trained when a run starts and kept with it.
    """

    kind: Literal["classifier"] = "classifier"
    """A classifier of the run's classes."""
    width: int = Field(default=12, ge=4)
    """Channels of its first layer; they double twice."""
    steps: int = Field(default=800, ge=1)
    """Steps of its training with 32 clips each."""


class I3DFeatures(Config):
    """I3D, for FVD proper: weights made by `python -m tools.convert_i3d`."""

    kind: Literal["i3d"] = "i3d"
    """I3D trained on Kinetics-400."""
    weights: Path | None = None
    """The converted weights, an .npz file. There is no FVD without them."""
    resize: Resize = "tensorflow1"
    """How frames become 224x224: as FVD is defined, or with centred pixels, as PyTorch does."""


ClipFeaturesConfig = Annotated[
    ClipPixelFeatures | ClipClassifierFeatures | I3DFeatures, Field(discriminator="kind")
]
