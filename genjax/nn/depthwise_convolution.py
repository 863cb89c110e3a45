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
from genjax.nn.split_by_hand import neighbouring_rows, splits_batch, splits_rows
from genjax.parallel.mesh import BATCH_AXES, SEQUENCE_AXIS

Images = Float[Array, "B H W C"]

_Borders = tuple[int, int]
"""Zeros on either side of the height, and of the width."""


def depthwise_conv2d(inputs: Images, kernel: Float[Array, "K L C"], *, dilation: int = 1) -> Images:
    """Convolve each channel with its own kernel; zeros lie beyond the border.

    A CPU has no fast convolution for this, so there it is a sum of shifted slices, and so are its
    derivatives. Over several devices each convolves its own examples, and of examples whose rows
    are split too its own rows, for which it takes those at the seams from its neighbours.

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
    reach = _reach(kernel.shape, dilation)

    def by_platform(inputs: Array, kernel: Array) -> Array:
        inputs, borders = _with_neighbours(inputs, whole, reach)
        chosen = {"dilation": dilation, "borders": borders}
        return lax.platform_dependent(
            inputs,
            kernel,
            cpu=functools.partial(_by_slices, **chosen),
            default=functools.partial(_by_convolution, **chosen),
        )

    whole, split = inputs.shape[1], _split(inputs)
    if split is None:
        return by_platform(inputs, kernel)
    return jax.shard_map(by_platform, in_specs=(split, P()), out_specs=split)(inputs, kernel)


def _split(inputs: Array) -> P | None:
    """How devices share the inputs, or None where each has all of them."""
    if not splits_batch(inputs.shape[0]):
        return None
    return P(BATCH_AXES, SEQUENCE_AXIS) if splits_rows(inputs.shape[1]) else P(BATCH_AXES)


def _reach(size: tuple[int, ...], dilation: int) -> _Borders:
    return dilation * (size[0] // 2), dilation * (size[1] // 2)


def _with_neighbours(inputs: Array, whole: int, reach: _Borders) -> tuple[Array, _Borders]:
    """A device's rows with those around them, if it has not the whole height; borders to add."""
    if inputs.shape[1] == whole:
        return inputs, reach
    return neighbouring_rows(inputs, reach[0]), (0, reach[1])


def _correlate(inputs: Array, outputs: Array, size: tuple[int, int], dilation: int) -> Array:
    """The transpose of `_depthwise` in its kernel, whose height and width are `size`."""
    reach = _reach(size, dilation)

    def by_platform(inputs: Array, outputs: Array) -> Array:
        inputs, borders = _with_neighbours(inputs, whole, reach)
        chosen = {"size": size, "dilation": dilation, "borders": borders}
        return lax.platform_dependent(
            inputs,
            outputs,
            cpu=functools.partial(_correlate_slices, **chosen),
            default=functools.partial(_correlate_by_convolution, **chosen),
        )

    whole, split = inputs.shape[1], _split(inputs)
    if split is None:
        return by_platform(inputs, outputs)
    axes = (*BATCH_AXES, *split[1:])
    # XLA's partitioner must not see this convolution: over a mesh with axes other than the batch's
    # it adds up the copies, too.
    return jax.shard_map(
        lambda *parts: lax.psum(by_platform(*parts), axes),
        in_specs=(split, split),
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


def _by_convolution(inputs: Array, kernel: Array, dilation: int, borders: _Borders) -> Array:
    return lax.conv_general_dilated(
        inputs,
        kernel[:, :, None],
        (1, 1),
        [(side, side) for side in borders],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=inputs.shape[-1],
    )


def _correlate_by_convolution(
    inputs: Array, outputs: Array, size: tuple[int, int], dilation: int, borders: _Borders
) -> Array:
    kernel = jax.ShapeDtypeStruct((*size, inputs.shape[-1]), inputs.dtype)
    convolve = functools.partial(_by_convolution, inputs, dilation=dilation, borders=borders)
    return jax.linear_transpose(convolve, kernel)(outputs)[0]


def _slices(
    inputs: Array, size: tuple[int, ...], dilation: int, borders: _Borders
) -> dict[tuple[int, int], Array]:
    """What each tap reads, [B, H, W, C]; taps that read nothing but the border are left out."""
    sides = tuple(inputs.shape[1:3])
    lengths = [
        side + 2 * (border - reach)
        for side, border, reach in zip(sides, borders, _reach(size, dilation), strict=True)
    ]
    padded = jnp.pad(inputs, ((0, 0), *((border, border) for border in borders), (0, 0)))

    def reads(tap: int, axis: int) -> bool:
        first = tap * dilation - borders[axis]
        return first < sides[axis] and first + lengths[axis] > 0

    def read(i: int, j: int) -> Array:
        rows = slice(i * dilation, i * dilation + lengths[0])
        return padded[:, rows, j * dilation : j * dilation + lengths[1]]

    taps = [(i, j) for i in range(size[0]) for j in range(size[1])]
    return {(i, j): read(i, j) for i, j in taps if reads(i, 0) and reads(j, 1)}


def _wide(array: Array) -> Array:
    """In float32 at least: up to 49 products add up."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _by_slices(inputs: Array, kernel: Array, dilation: int, borders: _Borders) -> Array:
    taps = _wide(kernel)
    slices = _slices(inputs, kernel.shape, dilation, borders)
    products = [_wide(part) * taps[tap] for tap, part in slices.items()]
    return functools.reduce(jnp.add, products).astype(inputs.dtype)


def _correlate_slices(
    inputs: Array, outputs: Array, size: tuple[int, int], dilation: int, borders: _Borders
) -> Array:
    slices, outputs = _slices(inputs, size, dilation, borders), _wide(outputs)
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
