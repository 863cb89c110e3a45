"""Two-dimensional convolutions, their transposes, and zero or circular borders.

Letters: B batch, H height, W width, C input channels, F output channels, K kernel size.
"""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

PaddingMode = Literal["zeros", "circular"]
"""What lies beyond an image's border: nothing, or its opposite side (for tileable textures)."""

Images = Float[Array, "B H W C"]
Kernel = Float[Array, "K L C F"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")

_WIDE, _WIDE_STRIDED = 2**15, 2**13
"""C times F from which matrix products over gathered pixels beat XLA's own form on a CPU: for the
kernel's gradient, and (also the convolution itself) for 3x3 kernels of stride 2. Measured."""


# ---- the convolution, its two transposes, and their derivatives -------------------------------
#
# The convolution is linear in images and in kernel. Its derivatives are two more functions of the
# same kind, and theirs are these three again. So whatever the order of differentiation (gradient
# penalties need the second), each product runs in the form that was chosen for it.


def _plain(images: Array, kernel: Array, stride: int, padding: tuple[int, int]) -> Array:
    """A convolution as XLA has it; `padding` counts zeros on either side of height and width."""
    sides = [(pad, pad) for pad in padding]
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), sides, dimension_numbers=_LAYOUT
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images: Array, kernel: Array, stride: int, padding: tuple[int, int]) -> Array:
    plain = functools.partial(_plain, stride=stride, padding=padding)
    if not _small_and_strided(kernel.shape[:2], stride, kernel.shape[2] * kernel.shape[3]):
        return plain(images, kernel)
    gathered = functools.partial(_convolve_gathered, stride=stride, padding=padding)
    return lax.platform_dependent(images, kernel, cpu=gathered, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _spread(
    outputs: Array, kernel: Array, size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> Array:
    """The transpose of `_convolve` in its images, which are of `size`."""
    shape = (outputs.shape[0], *size, kernel.shape[2])
    images = jax.ShapeDtypeStruct(shape, outputs.dtype)
    (result,) = jax.linear_transpose(lambda x: _plain(x, kernel, stride, padding), images)(outputs)
    return result


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _correlate(
    images: Array, outputs: Array, size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> Array:
    """The transpose of `_convolve` in its kernel, whose height and width are `size`."""

    def whole(images: Array, outputs: Array) -> Array:
        shape = (*size, images.shape[3], outputs.shape[3])
        kernel = jax.ShapeDtypeStruct(shape, images.dtype)
        (result,) = jax.linear_transpose(lambda k: _plain(images, k, stride, padding), kernel)(
            outputs
        )
        return result

    width = images.shape[3] * outputs.shape[3]
    if width < _WIDE and not _small_and_strided(size, stride, width):
        return whole(images, outputs)
    # With many channels XLA:CPU is up to three times slower in one piece than one matrix product
    # for each row of the kernel.
    by_row = functools.partial(_correlate_by_row, size=size, stride=stride, padding=padding)
    return lax.platform_dependent(images, outputs, cpu=by_row, default=whole)


def _small_and_strided(size: tuple[int, ...], stride: int, width: int) -> bool:
    return stride == 2 and size == (3, 3) and width >= _WIDE_STRIDED


def _rows(
    images: Array, size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> list[Array]:
    """For each row of a kernel the pixels that it reads, [B, H2, W2, L C] for L columns."""
    images = jnp.pad(images, ((0, 0), *((pad, pad) for pad in padding), (0, 0)))
    height, width = ((images.shape[1 + n] - size[n]) // stride + 1 for n in (0, 1))

    def row(i: int) -> Array:
        read = images[:, i : i + stride * (height - 1) + 1 : stride]
        stop = stride * (width - 1) + 1
        return jnp.concatenate([read[:, :, j : j + stop : stride] for j in range(size[1])], -1)

    return [row(i) for i in range(size[0])]


def _convolve_gathered(
    images: Array, kernel: Array, stride: int, padding: tuple[int, int]
) -> Array:
    """All pixels that a kernel reads side by side, and one matrix product."""
    pixels = jnp.concatenate(_rows(images, (kernel.shape[0], kernel.shape[1]), stride, padding), -1)
    return jnp.matmul(pixels, kernel.reshape(-1, kernel.shape[3]))


def _correlate_by_row(
    images: Array, outputs: Array, size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> Array:
    """One matrix product for each row of the kernel."""
    products = [
        lax.dot_general(pixels, outputs, (((0, 1, 2), (0, 1, 2)), ((), ())))
        for pixels in _rows(images, size, stride, padding)
    ]
    return jnp.stack(products).reshape(*size, images.shape[3], outputs.shape[3])


def _convolve_forward(
    images: Array, kernel: Array, stride: int, padding: tuple[int, int]
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(images, kernel, stride, padding), (images, kernel)


def _convolve_backward(
    stride: int, padding: tuple[int, int], saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    images, kernel = saved
    return (
        _spread(cotangent, kernel, _size(images), stride, padding),
        _correlate(images, cotangent, _size(kernel, 0), stride, padding),
    )


def _spread_forward(
    outputs: Array, kernel: Array, size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> tuple[Array, tuple[Array, Array]]:
    return _spread(outputs, kernel, size, stride, padding), (outputs, kernel)


def _spread_backward(
    size: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    saved: tuple[Array, Array],
    cotangent: Array,
) -> tuple[Array, Array]:
    del size
    outputs, kernel = saved
    return (
        _convolve(cotangent, kernel, stride, padding),
        _correlate(cotangent, outputs, _size(kernel, 0), stride, padding),
    )


def _correlate_forward(
    images: Array, outputs: Array, size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> tuple[Array, tuple[Array, Array]]:
    return _correlate(images, outputs, size, stride, padding), (images, outputs)


def _correlate_backward(
    size: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    saved: tuple[Array, Array],
    cotangent: Array,
) -> tuple[Array, Array]:
    del size
    images, outputs = saved
    return (
        _spread(outputs, cotangent, _size(images), stride, padding),
        _convolve(images, cotangent, stride, padding),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)
_spread.defvjp(_spread_forward, _spread_backward)
_correlate.defvjp(_correlate_forward, _correlate_backward)


def _size(array: Array, first: int = 1) -> tuple[int, int]:
    return array.shape[first], array.shape[first + 1]


# ---- public functions -------------------------------------------------------------------------


def wrap(images: Images, top: int, bottom: int, left: int, right: int) -> Float[Array, "B H2 W2 C"]:
    """Continue images beyond their borders with their opposite sides.

    Args:
        images: [B, H, W, C].
        top: rows to add above; the other sides likewise. More than the image has wrap again.
        bottom: rows to add below.
        left: columns to add on the left.
        right: columns to add on the right.
    """
    return jnp.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)), mode="wrap")


def conv2d(
    images: Images,
    kernel: Kernel,
    *,
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
    padding_mode: PaddingMode = "zeros",
) -> Float[Array, "B H2 W2 F"]:
    """Convolve images (in deep learning's sense: cross-correlation), differentiable to any order.

    Args:
        images: [B, H, W, C].
        kernel: [K, L, C, F].
        stride: step of the kernel in rows and columns.
        padding: border on each side, for height and width; by default half of the kernel, which
            for odd kernels at stride 1 keeps the size.
        padding_mode: what the border is made of.

    Returns:
        [B, (H + 2 padding - K) // stride + 1, .., F].
    """
    pads = _paddings(kernel, padding)
    if padding_mode == "circular" and any(pads):
        images = wrap(images, pads[0], pads[0], pads[1], pads[1])
        pads = (0, 0)
    return _convolve(images, kernel.astype(images.dtype), stride, pads)


def conv_transpose2d(
    images: Float[Array, "B H W F"],
    kernel: Kernel,
    *,
    stride: int = 2,
    padding: int | tuple[int, int] = 0,
    padding_mode: PaddingMode = "zeros",
) -> Float[Array, "B H2 W2 C"]:
    """The transpose of `conv2d` in its images: each input pixel spreads a kernel of outputs.

    Args:
        images: [B, H, W, F].
        kernel: [K, L, C, F], as `conv2d` takes it: F is what goes in here, C what comes out.
        stride: step between kernels in the output.
        padding: border to cut off the output on each side, for height and width.
        padding_mode: "circular" adds what is cut off to the opposite side instead.

    Returns:
        [B, stride (H - 1) + K - 2 padding, .., C]; with circular borders [B, stride H, ..].
    """
    height, width = images.shape[1:3]
    pads = (padding, padding) if isinstance(padding, int) else padding
    rows, columns = kernel.shape[:2]
    kernel = kernel.astype(images.dtype)
    full = (stride * (height - 1) + rows, stride * (width - 1) + columns)
    if padding_mode == "zeros":
        size = (full[0] - 2 * pads[0], full[1] - 2 * pads[1])
        return _spread(images, kernel, size, stride, pads)
    # Inputs repeated around the border: enough that every output has all its contributions.
    margin = -(-max(rows, columns) // stride)
    images = wrap(images, margin, margin, margin, margin)
    full = (full[0] + 2 * margin * stride, full[1] + 2 * margin * stride)
    outputs: Array = _spread(images, kernel, full, stride, (0, 0))
    top, left = margin * stride + pads[0], margin * stride + pads[1]
    return outputs[:, top : top + stride * height, left : left + stride * width]


def _paddings(kernel: Array, padding: int | tuple[int, int] | None) -> tuple[int, int]:
    if padding is None:
        return kernel.shape[0] // 2, kernel.shape[1] // 2
    return (padding, padding) if isinstance(padding, int) else padding


class Conv(nn.Module):
    """A convolution with its parameters.

    Attributes:
        features: number of output channels F.
        kernel_size: height and width K of the kernel.
        stride: step of the kernel.
        padding: border on each side; half of the kernel by default.
        padding_mode: what the border is made of.
        use_bias: whether to add a bias.
        kernel_init: initialiser of the kernel [K, K, C, F]; the bias starts at zero.
        dtype: dtype of computation. Parameters are float32.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    padding_mode: PaddingMode = "zeros"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "B H2 W2 F"]:
        """Convolve, [B, H, W, C] to [B, H2, W2, F]."""
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        outputs = conv2d(
            images.astype(self.dtype),
            kernel,
            stride=self.stride,
            padding=self.padding,
            padding_mode=self.padding_mode,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            outputs += bias.astype(self.dtype)
        return outputs


class ConvTranspose(nn.Module):
    """A transposed convolution with its parameters.

    Attributes:
        features: number of output channels C.
        kernel_size: height and width K of the kernel.
        stride: factor by which the image grows.
        padding: border cut off the output on each side.
        padding_mode: "circular" adds it to the opposite side instead.
        use_bias: whether to add a bias.
        kernel_init: initialiser of the kernel [K, K, features, F], F the input channels.
        dtype: dtype of computation. Parameters are float32.
    """

    features: int
    kernel_size: int = 4
    stride: int = 2
    padding: int = 1
    padding_mode: PaddingMode = "zeros"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W F"]) -> Float[Array, "B H2 W2 C"]:
        """Grow, [B, H, W, F] to [B, H2, W2, C]."""
        shape = (self.kernel_size, self.kernel_size, self.features, images.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape)
        outputs = conv_transpose2d(
            images.astype(self.dtype),
            kernel,
            stride=self.stride,
            padding=self.padding,
            padding_mode=self.padding_mode,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            outputs += bias.astype(self.dtype)
        return outputs
