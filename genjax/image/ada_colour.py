"""ADA's colour transforms: one matrix an image, made of up to five random ones.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B.

Shapes: B batch, H height, W width, C channels; images are in about [-1, 1].
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from genjax.image.augmentation_pixels import (
    Probability,
    draw_type,
    drawn_or,
    on_colour,
    per_image,
    select,
    uniform_and_normal,
)

# The luma axis v, the outer product v v^T, and the matrix of the cross product with v.
_AXIS = np.full(3, 1 / math.sqrt(3))
_ALONG = np.outer(_AXIS, _AXIS)
_CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)


class Colour(NamedTuple):
    """Parameters of the transforms, one an image, in the order of application."""

    brightness: Float[Array, " B"]
    """Added to all channels; 0 for no change."""
    contrast: Float[Array, " B"]
    """Factor of all channels; 1 for no change."""
    luma_flip: Float[Array, " B"]
    """1 to mirror along the luma axis, which turns bright to dark and keeps hues, else 0."""
    hue: Float[Array, " B"]
    """Rotation about the luma axis, in radians."""
    saturation: Float[Array, " B"]
    """Factor of the distance from the luma axis; 1 for no change."""


def draw_colour(
    key: Key[Array, ""],
    batch: int,
    probability: Probability,
    dtype: jnp.dtype | type = jnp.float32,
) -> Colour:
    """Draw each transform with the given probability for each image, and none otherwise."""
    uniform, normal = uniform_and_normal(key, batch, 7, 3, dtype)
    flip, hue = jnp.floor(2.0 * uniform[5]), math.pi * (2.0 * uniform[6] - 1.0)
    return Colour(
        brightness=drawn_or(uniform[0], probability, 0.2 * normal[0], 0.0),
        contrast=drawn_or(uniform[1], probability, jnp.exp2(0.5 * normal[1]), 1.0),
        luma_flip=drawn_or(uniform[2], probability, flip, 0.0),
        hue=drawn_or(uniform[3], probability, hue, 0.0),
        saturation=drawn_or(uniform[4], probability, jnp.exp2(normal[2]), 1.0),
    )


def colour_matrix(colour: Colour) -> Float[Array, "B 3 4"]:
    """What the transforms together do to (red, green, blue, 1): rows of the matrix C.

    The paper's C is 4 x 4; its last row is always (0, 0, 0, 1) and left out here. All of the
    factors but the translation by the brightness b are 3 x 3 matrices M, and C = [M | M (b, b, b)].
    """
    dtype = colour.brightness.dtype
    along, cross = jnp.asarray(_ALONG, dtype), jnp.asarray(_CROSS, dtype)
    identity = jnp.eye(3, dtype=dtype)
    across = identity - along

    def column(value: Array) -> Array:
        return per_image(value, 3)

    flip = identity - 2.0 * column(colour.luma_flip) * along
    # Rodrigues: what lies along the axis stays, what lies across it turns.
    hue = along + column(jnp.cos(colour.hue)) * across + column(jnp.sin(colour.hue)) * cross
    saturation = along + column(colour.saturation) * across
    matrix = jnp.matmul(saturation, jnp.matmul(hue, flip, precision="highest"), precision="highest")
    matrix = matrix * column(colour.contrast)
    shift = jnp.sum(matrix, axis=-1, keepdims=True) * column(colour.brightness)
    return jnp.concatenate([matrix, shift], axis=-1)


def _multiply(colours: Array, matrix: Array) -> Array:
    """The matrix at every pixel, as sums: three channels are too few for a matrix unit."""
    columns = matrix.astype(colours.dtype)[:, None, None]
    total = columns[..., 3]
    for channel in range(3):
        total = total + colours[..., channel : channel + 1] * columns[..., channel]
    return total


def apply_colour(images: Float[Array, "B H W C"], colour: Colour) -> Float[Array, "B H W C"]:
    """Transform the colours of each image; alpha stays, one channel takes brightness and contrast.

    Raises:
        UserError: the images have neither 1 nor 3 nor 4 channels.
    """
    changed = (colour.brightness != 0) | (colour.contrast != 1)
    if images.shape[-1] == 1:
        shift = per_image(colour.brightness).astype(images.dtype)
        new = (images + shift) * per_image(colour.contrast).astype(images.dtype)
        return select(changed, new, images)
    changed |= (colour.luma_flip != 0) | (colour.hue != 0) | (colour.saturation != 1)
    matrix = colour_matrix(colour)
    return select(changed, on_colour(lambda colours: _multiply(colours, matrix), images), images)


def random_colour(
    images: Float[Array, "B H W C"], key: Key[Array, ""], probability: Probability
) -> Float[Array, "B H W C"]:
    """Draw and apply; see `draw_colour` and `apply_colour`."""
    draws = draw_colour(key, images.shape[0], probability, draw_type(images))
    return apply_colour(images, draws)
