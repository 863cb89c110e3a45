"""Points in the plane from a mixture of Gaussians, as images of one pixel with two channels.

The toy problems on which GANs lose modes (Srivastava et al., 2017; Lin et al., 2018).
"""

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from genjax.config import Config
from genjax.data.image_source import ImageSource, ImageSplit, Mixture, split_of_rows
from genjax.data.random_numbers import random_integers, standard_normal
from genjax.data.text_documents import fingerprint

_STANDARD_DEVIATION = {"grid": 0.05, "ring": 0.01}
_SCALE = {"grid": 4.0, "ring": 1.0}


class GaussianMixture(Config):
    """25 Gaussians on a grid or 8 on a ring, in two dimensions."""

    kind: Literal["gaussian_mixture"] = "gaussian_mixture"
    layout: Literal["grid", "ring"] = "grid"
    """"grid": around all pairs of -4, -2, 0, 2, 4; "ring": 8 around the unit circle."""
    standard_deviation: Annotated[float, Field(gt=0.0)] | None = None
    """Of each Gaussian, before `scale`; unset: 0.05 on the grid, 0.01 on the ring."""
    scale: Annotated[float, Field(gt=0.0)] | None = None
    """Points are divided by it, to lie in about -1 to 1; unset: 4 for the grid, 1 for the ring."""
    samples: Annotated[int, Field(ge=10)] = 100_000
    """Points to train on; a tenth as many others are for validation."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the points."""


def open_mixture(config: GaussianMixture) -> ImageSource:
    """Draws the points: float32 [n, 1, 1, 2], without labels; the source has a `mixture`."""
    deviation = config.standard_deviation or _STANDARD_DEVIATION[config.layout]
    scale = config.scale or _SCALE[config.layout]
    mixture = Mixture(_modes(config.layout) / scale, deviation / scale)
    return ImageSource(
        name=f"the {config.layout} of Gaussians",
        image_shape=(1, 1, 2),
        num_classes=0,
        class_names=(),
        fingerprint=fingerprint(
            "gaussian_mixture", config.layout, deviation, scale, config.samples, config.seed
        ),
        splits={
            "train": _draw(mixture, config.samples, config.seed, 0),
            "validation": _draw(mixture, config.samples // 10, config.seed, 1),
        },
        mixture=mixture,
    )


def _modes(layout: str) -> Float[np.ndarray, "K 2"]:
    if layout == "grid":
        across, down = np.meshgrid(np.arange(-4.0, 5.0, 2.0), np.arange(-4.0, 5.0, 2.0))
        return np.stack([across.ravel(), down.ravel()], axis=1)
    angle = np.arange(8) * (np.pi / 4)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _draw(mixture: Mixture, count: int, seed: int, split: int) -> ImageSplit:
    mode = random_integers(len(mixture.modes), count, seed, split, 0)
    noise = standard_normal(2 * count, seed, split, 1).reshape(count, 2)
    points = mixture.modes[mode] + mixture.standard_deviation * noise
    return split_of_rows(points.astype(np.float32)[:, None, None, :])
