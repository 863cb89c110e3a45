"""The convolution of recurrent layers: stride 1, size kept, quick inside a loop over time.

XLA:CPU runs the gradients of a convolution many times slower inside a loop than outside. There
they are matrix products here: the kernel's gradient over gathered pixels (im2col), the images' by
adding up what each output pixel gives to its surroundings (col2im). Elsewhere, and forward
everywhere, it is XLA's own convolution.

Where a loop's rows are split over devices by hand (`genjax.nn.split_by_hand`), each device takes
the rows that it needs from its neighbours first.

Letters: B batch, H height, W width, C input channels, F output channels, K kernel size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from genjax.nn.split_by_hand import neighbouring_rows, rows_are_split

_LAYOUT = ("NHWC", "HWIO", "NHWC")

_Borders = tuple[int, int]
"""Zeros on either side of the height, and of the width."""


def loop_conv2d(
    images: Float[Array, "B H W C"], kernel: Float[Array, "K K C F"]
) -> Float[Array, "B H W F"]:
    """Convolve images (cross-correlation) with zeros beyond their borders, keeping their size.

    Args:
        images: [B, H, W, C].
        kernel: [K, K, C, F] of odd size.

    Returns:
        [B, H, W, F], in the wider of both types.
    """
    assert kernel.shape[0] % 2 == 1, kernel.shape
    pad = kernel.shape[0] // 2
    if pad and rows_are_split():
        return _convolve(neighbouring_rows(images, pad), kernel, (0, pad))
    return _convolve(images, kernel, (pad, pad))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(images: Array, kernel: Array, borders: _Borders) -> Array:
    return _plain(images, kernel, borders)


def _plain(images: Array, kernel: Array, borders: _Borders) -> Array:
    dtype = jnp.promote_types(images.dtype, kernel.dtype)
    return lax.conv_general_dilated(
        images.astype(dtype),
        kernel.astype(dtype),
        (1, 1),
        [(border, border) for border in borders],
        dimension_numbers=_LAYOUT,
    )


def _forward(images: Array, kernel: Array, borders: _Borders) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(images, kernel, borders), (images, kernel)


def _backward(
    borders: _Borders, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    images, kernel = saved

    def spread(cotangent: Array) -> Array:
        like = jax.ShapeDtypeStruct(images.shape, images.dtype)
        (result,) = jax.linear_transpose(lambda x: _plain(x, kernel, borders), like)(cotangent)
        return result

    def correlate(images: Array, cotangent: Array) -> Array:
        like = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
        (result,) = jax.linear_transpose(lambda k: _plain(images, k, borders), like)(cotangent)
        return result

    return (
        lax.platform_dependent(
            cotangent, cpu=lambda z: _spread(z, kernel, images, borders), default=spread
        ),
        lax.platform_dependent(
            images,
            cotangent,
            cpu=lambda x, z: _correlate(x, z, kernel, borders),
            default=correlate,
        ),
    )


_convolve.defvjp(_forward, _backward)


def _spread(cotangent: Array, kernel: Array, images: Array, borders: _Borders) -> Array:
    """One product gives what every output pixel sends to each of its K x K surroundings."""
    size, channels = kernel.shape[0], kernel.shape[2]
    # By how much images are larger than outputs: what is sent beyond them is lost.
    grown = [size - 1 - 2 * border for border in borders]
    weights = jnp.moveaxis(kernel, 3, 0).reshape(kernel.shape[3], -1).astype(cotangent.dtype)
    sent = jnp.matmul(cotangent, weights).reshape(*cotangent.shape[:3], size, size, channels)
    # Many terms are added: in more digits than the products have.
    wide = jnp.promote_types(sent.dtype, jnp.float32)
    zero = jnp.zeros((), wide)
    total: Any = 0
    for i in range(size):
        for j in range(size):
            down, right = i - borders[0], j - borders[1]
            moves = (
                (0, 0, 0),
                (down, grown[0] - down, 0),
                (right, grown[1] - right, 0),
                (0, 0, 0),
            )
            total += lax.pad(sent[:, :, :, i, j].astype(wide), zero, moves)
    return total.astype(images.dtype)


def _correlate(images: Array, cotangent: Array, kernel: Array, borders: _Borders) -> Array:
    """For each row of the kernel, one product over all pixels that it reads side by side."""
    size = kernel.shape[0]
    height, width = cotangent.shape[1:3]
    sides = ((0, 0), *((border, border) for border in borders), (0, 0))
    padded = jnp.pad(images, sides).astype(cotangent.dtype)
    outputs = cotangent.reshape(-1, cotangent.shape[-1])
    rows = []
    for i in range(size):
        read = [padded[:, i : i + height, j : j + width] for j in range(size)]
        pixels = jnp.concatenate(read, -1).reshape(len(outputs), -1)
        rows.append(lax.dot_general(pixels, outputs, (((0,), (0,)), ((), ()))))
    return jnp.stack(rows).reshape(kernel.shape).astype(kernel.dtype)
