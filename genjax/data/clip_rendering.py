"""Frames of drawn clips, made on the device from what the host says of them.

All arithmetic is on integers, so that every device draws the same pixels.

n clips, D pictures in each; T time, H height, W width, S side of the canvas; h height and w width
of a picture.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, UInt8

# Pictures -----------------------------------------------------------------------------------------

PICTURES = "pictures"
"""The array of a batch that holds the pictures to be placed, uint8 [n, D, h, w]."""
CORNERS = "corners"
"""Pixels (row, column) of the pictures' upper left corners, int32 [n, T, D, 2]."""


def place_pictures(
    pictures: UInt8[Array, "n D h w"], corners: Int[Array, "n T D 2"], size: int
) -> UInt8[Array, "n T S S 1"]:
    """Pictures on a black canvas of `size` pixels; where they overlap the brighter pixel shows.

    Every picture has to lie inside the canvas.
    """
    room = size - pictures.shape[2], size - pictures.shape[3]
    # A window that is cut from the widened picture is much faster than an update of a canvas.
    wide = jnp.pad(pictures, ((0, 0), (0, 0), (room[0], room[0]), (room[1], room[1])))

    def place(picture: Array, corner: Array) -> Array:
        return lax.dynamic_slice(picture, (room[0] - corner[0], room[1] - corner[1]), (size, size))

    of_clip = jax.vmap(jax.vmap(place), in_axes=(None, 0))
    return jax.vmap(of_clip)(wide, corners).max(axis=2)[..., None]


# Shapes -------------------------------------------------------------------------------------------

SHAPE = "shape"
"""Number in `SHAPES` of the shape, int32 [n]."""
RADIUS = "radius"
"""About half its width, in `UNITS` to a pixel, int32 [n]."""
CENTRES = "centres"
"""(Row, column) of its centre of mass from the canvas's upper left, in `UNITS`, int32 [n, T, 2]."""
COLOUR = "colour"
"""Its colour, uint8 [n, 3]."""
BACKGROUND = "background"
"""The colour of all the rest, uint8 [n, 3]."""

UNITS = 64
"""Units of length to a pixel; clips of up to 256 pixels fit 32-bit integers."""


def shape_reach(radius: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """How far from its centre the largest of the shapes still touches pixels, in `UNITS`."""
    # A corner of 60 degrees is soft up to a pixel beyond its tip; a pixel counts by its middle.
    return radius * 5 // 4 + UNITS * 3 // 2


def draw_shapes(description: Mapping[str, Array], size: int) -> UInt8[Array, "n T S S 3"]:
    """Shapes in one colour on a plain background, with soft edges one pixel wide."""
    radius = description[RADIUS][:, None, None, None]
    middles = UNITS * jnp.arange(size) + UNITS // 2
    centres = description[CENTRES]
    down = middles[:, None] - centres[..., 0, None, None]
    across = middles - centres[..., 1, None, None]
    distances = [distance(down, across, radius) for distance in _DISTANCES.values()]
    shape = jnp.broadcast_to(description[SHAPE][:, None, None, None], distances[0].shape)
    distance = lax.select_n(shape, *distances)
    inside = jnp.clip(UNITS // 2 - distance, 0, UNITS)[..., None]
    colour, background = (
        description[name][:, None, None, None].astype(jnp.int32) for name in (COLOUR, BACKGROUND)
    )
    mixed = colour * inside + background * (UNITS - inside)
    return ((mixed + UNITS // 2) // UNITS).astype(jnp.uint8)


# Distances from the edge in `UNITS`, negative inside: of a polygon from its lines, so that they are
# short of the truth beyond its corners, where nothing is drawn but half a pixel.


def _circle(down: Array, across: Array, radius: Array) -> Array:
    # Near the edge |p| - r is (|p|^2 - r^2) / 2r, which needs no root.
    return (down**2 + across**2 - radius**2) // (2 * radius)


def _square(down: Array, across: Array, radius: Array) -> Array:
    return jnp.maximum(jnp.abs(down), jnp.abs(across)) - radius * 55 // 64


def _triangle(down: Array, across: Array, radius: Array) -> Array:
    # Equal sides, one of them at the bottom; (32, 55) / 64 is half and half the root of three.
    slanted = (55 * jnp.abs(across) - 32 * down) // 64
    return jnp.maximum(down, slanted) - radius * 40 // 64


def _diamond(down: Array, across: Array, radius: Array) -> Array:
    # 45 / 64 is one by the root of two.
    return (jnp.abs(down) + jnp.abs(across)) * 45 // 64 - radius * 55 // 64


_DISTANCES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
}

SHAPES = tuple(_DISTANCES)
"""Names of the shapes."""
