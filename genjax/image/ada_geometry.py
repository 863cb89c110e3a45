"""ADA's general geometric transforms: scaling, rotation, stretching and sub-pixel translation.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B. The
images are sampled at places that a matrix gives for each: they are enlarged by two with the
orthogonal sym6 low-pass, read bilinearly, and reduced again with the same filter, so that neither
aliasing nor blur tells the discriminator of the transform, and a transform that does nothing gives
the image back.

The paper pads the images by as much as the transforms of a batch need, which no compiled program
can. Here coordinates beyond the edge are folded back into the image instead, and all shapes are
static. Only a rim of a few pixels is padded, for the filters.

Shapes: B batch, H height, W width, C channels. Matrices act on (x, y, 1) in pixels about the
image's centre, x to the right and y down, so that rotations are rotations whatever the aspect.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from genjax.image.augmentation_pixels import (
    PAD_MODES,
    Boundary,
    Probability,
    draw_type,
    drawn_or,
    select,
    uniform_and_normal,
)
from genjax.nn.resample import upfirdn2d

SYM6 = (
    0.015404109327044824,
    0.0034907120842221626,
    -0.11799011114852002,
    -0.04831174258569806,
    0.49105594192797375,
    0.787641141028651,
    0.3379294217281658,
    -0.07263752278637658,
    -0.02106029251237085,
    0.04472490177078139,
    0.0017677118642540077,
    -0.00780070832503238,
)
"""Low-pass of the symlet with six vanishing moments (Daubechies 1992), of unit norm."""

# Sample m of an image enlarged with this filter lies at pixel (m - _CENTRE) / 2 of the image. With
# the filter's centroid for a centre that is exact for all polynomials of degree up to 2.
_CENTRE = float(np.dot(SYM6, np.arange(12)) / np.sum(SYM6))

# Pixels beyond the edge that are read without folding: as far as the last filter reaches when the
# transform does nothing, which then is exact at the edges too.
_RIM = 4
_PADDING = _RIM + 3
_FIRST_SAMPLE = len(SYM6) - 1 - 2 * _PADDING


class Geometry(NamedTuple):
    """Parameters of the transforms, one an image, in the order of application."""

    scale: Float[Array, " B"]
    """Factor of both sizes of what is seen; 1 for no change."""
    pre_rotation: Float[Array, " B"]
    """Angle in radians, before stretching."""
    stretch: Float[Array, " B"]
    """Factor of the width, and of the height its inverse; 1 for no change."""
    post_rotation: Float[Array, " B"]
    """Angle in radians, after stretching."""
    translation: Float[Array, "B 2"]
    """To the right and down, as shares of width and height."""


def draw_geometry(
    key: Key[Array, ""],
    batch: int,
    probability: Probability,
    dtype: jnp.dtype | type = jnp.float32,
) -> Geometry:
    """Draw each transform with the given probability for each image, and none otherwise.

    The two rotations have such probabilities that an image has at least one of them with the
    given probability.
    """
    uniform, normal = uniform_and_normal(key, batch, 7, 4, dtype)
    rotation_probability = 1.0 - jnp.sqrt(1.0 - probability)
    scale, stretch = jnp.exp2(0.2 * normal[:2])
    pre_rotation, post_rotation = math.pi * (2.0 * uniform[5:] - 1.0)
    return Geometry(
        scale=drawn_or(uniform[0], probability, scale, 1.0),
        pre_rotation=drawn_or(uniform[1], rotation_probability, pre_rotation, 0.0),
        stretch=drawn_or(uniform[2], probability, stretch, 1.0),
        post_rotation=drawn_or(uniform[3], rotation_probability, post_rotation, 0.0),
        translation=drawn_or(uniform[4], probability, 0.125 * normal[2:].T, 0.0),
    )


def is_drawn(geometry: Geometry) -> Array:
    """Which images any transform was drawn for, as [B] booleans."""
    return (
        (geometry.scale != 1)
        | (geometry.pre_rotation != 0)
        | (geometry.stretch != 1)
        | (geometry.post_rotation != 0)
        | jnp.any(geometry.translation != 0, axis=-1)
    )


def _matrix(rows: list[list[Array | float]], like: Array) -> Array:
    entries = [
        [jnp.broadcast_to(entry, like.shape).astype(like.dtype) for entry in row] for row in rows
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in entries], axis=-2)


def _rotation(angle: Array) -> Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _matrix([[cos, -sin], [sin, cos]], angle)


def inverse_matrix(geometry: Geometry, height: int, width: int) -> Float[Array, "B 2 3"]:
    """Where each place of the result comes from: the first two rows of the inverse of G.

    G = translation . rotation(-post) . diag(stretch, 1 / stretch) . rotation(-pre) . scale, whose
    factors are all easy to invert, unlike their product.
    """
    zero = jnp.zeros_like(geometry.scale)
    squeeze = _matrix([[1 / geometry.stretch, zero], [zero, geometry.stretch]], zero)
    linear = _rotation(geometry.pre_rotation) / geometry.scale[:, None, None]
    for factor in (squeeze, _rotation(geometry.post_rotation)):
        linear = jnp.matmul(linear, factor, precision="highest")
    pixels = geometry.translation * jnp.asarray([width, height], geometry.translation.dtype)
    shift = -jnp.matmul(linear, pixels[:, :, None], precision="highest")
    return jnp.concatenate([linear, shift], axis=-1)


def fold(place: Array, size: int, boundary: Boundary) -> Array:
    """Bring coordinates far beyond the edge back into [0, size - 1], or [0, size] if wrapped.

    Reflection is a triangle wave about the outermost pixels' centres. Places in the padded rim
    stay.
    """
    if boundary == "wrap":
        folded = jnp.mod(place, size)
    else:
        last = max(size - 1, 1)
        folded = last - jnp.abs(jnp.mod(place, 2 * last) - last)
    in_rim = (place >= -_RIM) & (place <= size - 1 + _RIM)
    return jnp.where(in_rim, place, folded)


def _read(samples: Array, rows: Array, columns: Array) -> Array:
    """Read between samples, bilinearly.

    Four neighbours lie side by side as channels, so that one index a place fetches all of them,
    and the derivative adds to a quarter as many places.

    Args:
        samples: [B, H, W, C].
        rows: [B, M, N] coordinates, within 0 and H - 1.
        columns: the same for W - 1.
    """
    batch, height, width, channels = samples.shape
    neighbours = jnp.concatenate(
        [samples[:, :-1, :-1], samples[:, :-1, 1:], samples[:, 1:, :-1], samples[:, 1:, 1:]],
        axis=-1,
    ).reshape(batch, (height - 1) * (width - 1), 4 * channels)
    row, column = jnp.floor(rows), jnp.floor(columns)
    down, right = rows - row, columns - column
    weights = jnp.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=-1
    )
    indices = row.astype(jnp.int32) * (width - 1) + column.astype(jnp.int32)

    def fetch(image: Array, index: Array) -> Array:
        return image.at[index].get(mode="promise_in_bounds")

    corners = jax.vmap(fetch)(neighbours, indices).reshape(*rows.shape, 4, channels)
    return jnp.sum(corners * weights[..., None].astype(samples.dtype), axis=-2)


def resample(
    images: Float[Array, "B H W C"],
    inverse: Float[Array, "B 2 3"],
    boundary: Boundary = "reflect",
) -> Float[Array, "B H W C"]:
    """Sample each image at the places that its matrix gives for the pixels of the result.

    Args:
        images: the images, all of whose channels are treated alike.
        inverse: from places in the result to places in the image; see the file's docstring.
        boundary: "reflect" or "wrap".
    """
    height, width = images.shape[1:3]
    rim = (_PADDING, _PADDING)
    padded = jnp.pad(images, ((0, 0), rim, rim, (0, 0)), mode=PAD_MODES[boundary])
    enlarged = upfirdn2d(padded, SYM6, up=2, gain=2.0)

    def places(size: int) -> Array:
        """Of the samples that the last filter reads, about the centre."""
        sample = jnp.arange(2 * size - 2 + len(SYM6), dtype=inverse.dtype)
        return (sample - _CENTRE) / 2 - (size - 1) / 2

    y, x = places(height)[:, None], places(width)[None, :]
    entry = inverse[:, :, :, None, None]
    source_x = entry[:, 0, 0] * x + entry[:, 0, 1] * y + entry[:, 0, 2] + (width - 1) / 2
    source_y = entry[:, 1, 0] * x + entry[:, 1, 1] * y + entry[:, 1, 2] + (height - 1) / 2
    offset = _CENTRE - _FIRST_SAMPLE
    columns = 2 * fold(source_x, width, boundary) + offset
    rows = 2 * fold(source_y, height, boundary) + offset
    # Correlated with, hence reversed: the transpose of the enlargement.
    return upfirdn2d(_read(enlarged, rows, columns), SYM6[::-1], down=2, gain=0.5)


def random_geometry(
    images: Float[Array, "B H W C"],
    key: Key[Array, ""],
    probability: Probability,
    boundary: Boundary = "reflect",
) -> Float[Array, "B H W C"]:
    """Draw and apply; images for which nothing was drawn stay as they are, to the bit.

    A batch for which nothing at all was drawn, as at probability 0, is not resampled either: until
    the controller finds overfitting, the most expensive augmentation costs nothing.
    """
    geometry = draw_geometry(key, images.shape[0], probability, draw_type(images))
    drawn = is_drawn(geometry)
    inverse = inverse_matrix(geometry, *images.shape[1:3])

    def change(images: Array) -> Array:
        return select(drawn, resample(images, inverse, boundary), images)

    return jax.lax.cond(jnp.any(drawn), change, lambda images: images, images)
