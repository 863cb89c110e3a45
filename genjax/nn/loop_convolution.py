"""The convolution of recurrent layers: stride 1, size kept, quick inside a loop over time.

XLA:CPU runs the gradients of a convolution many times slower inside a loop than outside. There
they are matrix products here: the kernel's gradient over gathered pixels (im2col), the images' by
adding up what each output pixel gives to its surroundings (col2im). Elsewhere, and forward
everywhere, it is XLA's own convolution.

Letters: B batch, H height, W width, C input channels, F output channels, K kernel size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
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
    return _plain(images, kernel)


def _plain(images: Array, kernel: Array) -> Array:
    dtype = jnp.promote_types(images.dtype, kernel.dtype)
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        images.astype(dtype),
        kernel.astype(dtype),
        (1, 1),
        ((pad, pad), (pad, pad)),
        dimension_numbers=_LAYOUT,
    )


def _forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return loop_conv2d(images, kernel), (images, kernel)


def _backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    images, kernel = saved

    def spread(cotangent: Array) -> Array:
        like = jax.ShapeDtypeStruct(images.shape, images.dtype)
        (result,) = jax.linear_transpose(lambda x: _plain(x, kernel), like)(cotangent)
        return result

    def correlate(images: Array, cotangent: Array) -> Array:
        like = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
        (result,) = jax.linear_transpose(lambda k: _plain(images, k), like)(cotangent)
        return result

    return (
        lax.platform_dependent(cotangent, cpu=lambda z: _spread(z, kernel, images), default=spread),
        lax.platform_dependent(
            images, cotangent, cpu=lambda x, z: _correlate(x, z, kernel), default=correlate
        ),
    )


loop_conv2d.defvjp(_forward, _backward)


def _spread(cotangent: Array, kernel: Array, images: Array) -> Array:
    """One product gives what every output pixel sends to each of its K x K surroundings."""
    size, channels = kernel.shape[0], kernel.shape[2]
    pad = size // 2
    weights = jnp.moveaxis(kernel, 3, 0).reshape(kernel.shape[3], -1).astype(cotangent.dtype)
    sent = jnp.matmul(cotangent, weights).reshape(*cotangent.shape[:3], size, size, channels)
    # Many terms are added: in more digits than the products have.
    wide = jnp.promote_types(sent.dtype, jnp.float32)
    zero = jnp.zeros((), wide)
    total: Any = 0
    for i in range(size):
        for j in range(size):
            down, right = i - pad, j - pad
            moves = ((0, 0, 0), (down, -down, 0), (right, -right, 0), (0, 0, 0))
            total += lax.pad(sent[:, :, :, i, j].astype(wide), zero, moves)
    return total.astype(images.dtype)


def _correlate(images: Array, cotangent: Array, kernel: Array) -> Array:
    """For each row of the kernel, one product over all pixels that it reads side by side."""
    size = kernel.shape[0]
    pad, (height, width) = size // 2, images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0))).astype(cotangent.dtype)
    outputs = cotangent.reshape(-1, cotangent.shape[-1])
    rows = []
    for i in range(size):
        read = [padded[:, i : i + height, j : j + width] for j in range(size)]
        pixels = jnp.concatenate(read, -1).reshape(len(outputs), -1)
        rows.append(lax.dot_general(pixels, outputs, (((0,), (0,)), ((), ()))))
    return jnp.stack(rows).reshape(kernel.shape).astype(kernel.dtype)
