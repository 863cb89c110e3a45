"""Moves, masks and draws that both augmentation pipelines are made of.

Shapes: B batch, H height, W width, C channels. Offsets and corners are (row, column) in pixels.
All functions are linear in the images, have static shapes, and treat each image on its own.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from genjax.errors import UserError

Probability = Float[Array, ""] | float
"""A probability in [0, 1]; traced, so that changing it compiles nothing anew."""

Boundary = Literal["zeros", "reflect", "wrap"]
"""What lies beyond the edge: zeros, the mirror image about the outermost pixels, or the other
edge."""

PAD_MODES: dict[Boundary, str] = {"zeros": "constant", "reflect": "reflect", "wrap": "wrap"}
"""The names that `jnp.pad` has for boundaries."""


def draw_type(images: Float[Array, "B H W C"]) -> jnp.dtype:
    """The type of random parameters: the images', and float32 at least."""
    return jnp.promote_types(images.dtype, jnp.float32)


def uniform_and_normal(
    key: Key[Array, ""], batch: int, uniforms: int, normals: int, dtype: jnp.dtype | type
) -> tuple[Float[Array, "U B"], Float[Array, "N B"]]:
    """Rows of draws from [0, 1) and of standard normal draws, a number an image in each.

    All at once, since each call of a random generator is a long piece of program.
    """
    keys = jax.random.split(key)
    return (
        jax.random.uniform(keys[0], (uniforms, batch), dtype),
        jax.random.normal(keys[1], (normals, batch), dtype),
    )


def drawn_or(
    uniform: Float[Array, " B"],
    probability: Probability,
    value: Float[Array, "B ..."],
    neutral: float,
) -> Float[Array, "B ..."]:
    """The value where a draw from [0, 1) is below the probability, else the neutral one."""
    return jnp.where(per_image(uniform < probability, value.ndim), value, neutral)


def per_image(value: Array, ndim: int = 4) -> Array:
    """Append axes of length 1, so that one number an image [B] broadcasts against images."""
    return value.reshape(value.shape + (1,) * (ndim - value.ndim))


def select(
    changed: Bool[Array, " B"],
    new: Float[Array, "B H W C"],
    old: Float[Array, "B H W C"],
) -> Float[Array, "B H W C"]:
    """The new images where something was drawn, and the very bits of the old ones elsewhere."""
    return jnp.where(per_image(changed), new, old)


def on_colour(
    function: Callable[[Array], Array], images: Float[Array, "B H W C"]
) -> Float[Array, "B H W C"]:
    """Apply a function to the colour channels and leave an alpha channel (C = 4) alone.

    Raises:
        UserError: the images have neither 1 nor 3 nor 4 channels.
    """
    channels = images.shape[-1]
    if channels not in (1, 3, 4):
        raise UserError(
            f"augmentation: images have {channels} channels; colours and noise are defined for 1, "
            "3 and 4 (the last one alpha). Choose other augmentations for these images"
        )
    if channels < 4:
        return function(images)
    return jnp.concatenate([function(images[..., :3]), images[..., 3:]], axis=-1)


def translate(
    images: Float[Array, "B H W C"],
    offsets: Int[Array, "B 2"],
    limits: tuple[int, int],
    boundary: Boundary,
) -> Float[Array, "B H W C"]:
    """Move each image down and to the right by whole pixels.

    It cuts a window out of the padded image: one copy forward, one addition backward, no index a
    pixel.

    Args:
        images: the images.
        offsets: rows and columns to move by, each within plus and minus its limit.
        limits: the largest number of rows and of columns, below H and W.
        boundary: what moves in.
    """
    rows, columns = limits
    padded = jnp.pad(
        images,
        ((0, 0), (rows, rows), (columns, columns), (0, 0)),
        mode=PAD_MODES[boundary],
    )
    # From the first channel on: (row, column, 0).
    starts = jnp.pad(jnp.asarray(limits, offsets.dtype) - offsets, ((0, 0), (0, 1)))

    def window(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, list(start), images.shape[1:])

    return jax.vmap(window)(padded, starts)


def erase(
    images: Float[Array, "B H W C"],
    low: Float[Array, "B 2"] | Int[Array, "B 2"],
    high: Float[Array, "B 2"] | Int[Array, "B 2"],
) -> Float[Array, "B H W C"]:
    """Set a rectangle of each image to zero in all channels: rows and columns in [low, high)."""
    height, width = images.shape[1:3]
    row, column = jnp.arange(height), jnp.arange(width)
    rows = (row >= low[:, :1]) & (row < high[:, :1])
    columns = (column >= low[:, 1:]) & (column < high[:, 1:])
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0.0, images)
