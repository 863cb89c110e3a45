"""A picture of points in the plane over the modes that they should fall on."""

import numpy as np
from jaxtyping import Float, UInt8

from genjax.data.image_source import Mixture


def scatter(
    points: Float[np.ndarray, "N 2"], mixture: Mixture, size: int = 320
) -> UInt8[np.ndarray, "size size 3"]:
    """Generated points in blue, rings three standard deviations around the modes in grey.

    Args:
        points: in the units of the mixture; those outside the picture are left out.
        mixture: the density that the points should have.
        size: height and width in pixels.
    """
    reach = 1.25 * float(np.abs(mixture.modes).max())
    picture = np.full((size, size, 3), 255, np.uint8)

    def places(where: Float[np.ndarray, "N 2"]) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.floor((where / reach + 1.0) * 0.5 * size).astype(np.int64)
        inside = ((pixels >= 0) & (pixels < size)).all(1)
        return size - 1 - pixels[inside, 1], pixels[inside, 0]

    angles = np.linspace(0.0, 2.0 * np.pi, 200)
    ring = 3.0 * mixture.standard_deviation * np.stack([np.cos(angles), np.sin(angles)], 1)
    picture[places((mixture.modes[:, None] + ring).reshape(-1, 2))] = (170, 170, 170)
    picture[places(points[np.isfinite(points).all(1)])] = (31, 98, 189)
    return picture
