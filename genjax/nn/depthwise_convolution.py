"""Depthwise convolutions: each channel has a kernel of its own.

Letters: B batch, H height, W width, C channels, K and L kernel size.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.errors import UserError
from genjax.nn.split_by_hand import splits_batch
from genjax.parallel.mesh import BATCH_AXES

Images = Float[Array, "B H W C"]


def depthwise_conv2d(inputs: Images, kernel: Float[Array, "K L C"], *, dilation: int = 1) -> Images:
    """Convolve each channel with its own kernel; zeros lie beyond the border.

    A CPU has no fast convolution for this, so there it is a sum of shifted slices, and so are its
    derivatives.

    Args:
        inputs: [B, H, W, C].
        kernel: [K, L, C], both sizes odd. As in all of deep learning it is not flipped.
        dilation: pixels between neighbouring taps.

    Returns:
        As large as the inputs.

    Raises:
        UserError: a size of the kernel is even.
    """
    if not all(size % 2 for size in kernel.shape[:2]):
        raise UserError(f"kernel sizes {kernel.shape[:2]} of a depthwise convolution must be odd")
    return _depthwise(inputs, kernel.astype(inputs.dtype), dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(inputs: Array, kernel: Array, dilation: int) -> Array:
    def by_platform(inputs: Array, kernel: Array) -> Array:
        return lax.platform_dependent(
            inputs,
            kernel,
            cpu=functools.partial(_by_slices, dilation=dilation),
            default=functools.partial(_by_convolution, dilation=dilation),
        )

    if not splits_batch(inputs.shape[0]):
        return by_platform(inputs, kernel)
    specs = (P(BATCH_AXES), P())
    return jax.shard_map(by_platform, in_specs=specs, out_specs=specs[0])(inputs, kernel)


def _correlate(inputs: Array, outputs: Array, size: tuple[int, int], dilation: int) -> Array:
    """The transpose of `_depthwise` in its kernel, whose height and width are `size`."""

    def by_platform(inputs: Array, outputs: Array) -> Array:
        return lax.platform_dependent(
            inputs,
            outputs,
            cpu=functools.partial(_correlate_slices, size=size, dilation=dilation),
            default=functools.partial(_correlate_by_convolution, size=size, dilation=dilation),
        )

    if not splits_batch(inputs.shape[0]):
        return by_platform(inputs, outputs)
    # XLA's partitioner must not see this convolution: over a mesh with axes other than the batch's
    # it adds up the copies, too.
    return jax.shard_map(
        lambda *parts: lax.psum(by_platform(*parts), BATCH_AXES),
        in_specs=(P(BATCH_AXES), P(BATCH_AXES)),
        out_specs=P(),
        # Otherwise the transpose adds up over devices by itself, in one of the two forms.
        check_vma=False,
    )(inputs, outputs)


def _forward(inputs: Array, kernel: Array, dilation: int) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(inputs, kernel, dilation), (inputs, kernel)


def _backward(dilation: int, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = saved
    size = (kernel.shape[0], kernel.shape[1])
    return (
        _depthwise(cotangent, kernel[::-1, ::-1], dilation),
        _correlate(inputs, cotangent, size, dilation),
    )


_depthwise.defvjp(_forward, _backward)


def _by_convolution(inputs: Array, kernel: Array, dilation: int) -> Array:
    reach = [dilation * (size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        inputs,
        kernel[:, :, None],
        (1, 1),
        [(side, side) for side in reach],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=inputs.shape[-1],
    )


def _correlate_by_convolution(
    inputs: Array, outputs: Array, size: tuple[int, int], dilation: int
) -> Array:
    kernel = jax.ShapeDtypeStruct((*size, inputs.shape[-1]), inputs.dtype)
    convolve = functools.partial(_by_convolution, inputs, dilation=dilation)
    return jax.linear_transpose(convolve, kernel)(outputs)[0]


def _slices(inputs: Array, size: tuple[int, ...], dilation: int) -> dict[tuple[int, int], Array]:
    """What each tap reads, [B, H, W, C]; taps that read nothing but the border are left out."""
    reach = [dilation * (length // 2) for length in size[:2]]
    height, width = inputs.shape[1:3]
    inputs = jnp.pad(inputs, ((0, 0), *((side, side) for side in reach), (0, 0)))
    return {
        (i, j): inputs[:, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
        for i in range(size[0])
        for j in range(size[1])
        if abs(i * dilation - reach[0]) < height and abs(j * dilation - reach[1]) < width
    }


def _wide(array: Array) -> Array:
    """In float32 at least: up to 49 products add up."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _by_slices(inputs: Array, kernel: Array, dilation: int) -> Array:
    taps = _wide(kernel)
    slices = _slices(inputs, kernel.shape, dilation)
    products = [_wide(part) * taps[tap] for tap, part in slices.items()]
    return functools.reduce(jnp.add, products).astype(inputs.dtype)


def _correlate_slices(inputs: Array, outputs: Array, size: tuple[int, int], dilation: int) -> Array:
    slices, outputs = _slices(inputs, size, dilation), _wide(outputs)
    nothing = jnp.zeros(inputs.shape[-1:], outputs.dtype)
    taps = [
        (_wide(slices[i, j]) * outputs).sum((0, 1, 2)) if (i, j) in slices else nothing
        for i in range(size[0])
        for j in range(size[1])
    ]
    return jnp.stack(taps).reshape(*size, -1).astype(inputs.dtype)


class DepthwiseConv(nn.Module):
    """A depthwise convolution with its parameters, a kernel [K, K, C] and a bias.

    Attributes:
        kernel_size: K, odd.
        dilation: pixels between neighbouring taps.
        dtype: dtype of computation. Parameters are float32.
    """

    kernel_size: int
    dilation: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Images) -> Images:
        """Convolve each channel, [B, H, W, C] to [B, H, W, C]."""
        shape = (self.kernel_size, self.kernel_size, inputs.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:])
        outputs = depthwise_conv2d(inputs.astype(self.dtype), kernel, dilation=self.dilation)
        return outputs + bias.astype(self.dtype)
