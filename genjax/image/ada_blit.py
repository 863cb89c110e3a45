"""ADA's pixel blitting: flips, quarter turns and whole-pixel translations, all of them lossless.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B. The
paper folds them into the matrix of the general geometric transforms; as moves of whole pixels they
need no resampling, and images that no general transform was drawn for stay sharp to the bit.

Shapes: B batch, H height, W width, C channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.image.augmentation_pixels import (
    Boundary,
    Probability,
    drawn_or,
    select,
    translate,
)

_TRANSLATION = 0.125


class Blit(NamedTuple):
    """Parameters of the moves, one an image, in the order of application."""

    flip: Float[Array, " B"]
    """1 to mirror left and right, else 0."""
    quarter_turns: Float[Array, " B"]
    """Turns by 90 degrees counterclockwise, 0 to 3."""
    translation: Float[Array, "B 2"]
    """Down and to the right, as shares of height and width, within plus and minus 1/8."""


def draw_blit(
    key: Key[Array, ""], batch: int, probability: Probability, *, square: bool = True
) -> Blit:
    """Draw each move with the given probability for each image, and no move otherwise.

    Args:
        key: random key.
        batch: number of images.
        probability: of each of the three.
        square: whether height equals width; if not, only half turns are drawn.
    """
    chosen, parameter = jnp.split(jax.random.uniform(key, (7, batch), jnp.float32), [3])
    flip = jnp.floor(2.0 * parameter[0])
    turns = jnp.floor(4.0 * parameter[1]) if square else 2.0 * jnp.floor(2.0 * parameter[1])
    translation = _TRANSLATION * (2.0 * parameter[2:].T - 1.0)
    return Blit(
        flip=drawn_or(chosen[0], probability, flip, 0.0),
        quarter_turns=drawn_or(chosen[1], probability, turns, 0.0),
        translation=drawn_or(chosen[2], probability, translation, 0.0),
    )


def _turn(images: Array, blit: Blit) -> Array:
    """Flip, then turn: at most one transposition and two flips, chosen by image."""
    turns = blit.quarter_turns.astype(jnp.int32)
    odd, flip = turns % 2 == 1, blit.flip > 0
    flip_rows = ((turns == 1) | (turns == 2)) ^ (flip & odd)
    flip_columns = (turns >= 2) ^ (flip & ~odd)
    height, width = images.shape[1:3]
    if height == width:
        images = select(odd, images.swapaxes(1, 2), images)
    images = select(flip_rows, images[:, ::-1], images)
    return select(flip_columns, images[:, :, ::-1], images)


def apply_blit(
    images: Float[Array, "B H W C"], blit: Blit, boundary: Boundary = "reflect"
) -> Float[Array, "B H W C"]:
    """Mirror, turn and translate each image; translations are rounded to whole pixels.

    Quarter turns need square images: others must have only even numbers of them.
    """
    sizes = images.shape[1:3]
    limits = (round(_TRANSLATION * sizes[0]), round(_TRANSLATION * sizes[1]))
    pixels = blit.translation * jnp.asarray(sizes, jnp.float32)
    offsets = jnp.round(pixels).astype(jnp.int32)
    return translate(_turn(images, blit), offsets, limits, boundary)


def random_blit(
    images: Float[Array, "B H W C"],
    key: Key[Array, ""],
    probability: Probability,
    boundary: Boundary = "reflect",
) -> Float[Array, "B H W C"]:
    """Draw and apply; see `draw_blit` and `apply_blit`."""
    batch, height, width, _ = images.shape
    return apply_blit(images, draw_blit(key, batch, probability, square=height == width), boundary)
