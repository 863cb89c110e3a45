"""Convolution in groups: each group of output channels sees one group of input channels.

Letters: B batch, H height, W width, C input channels, F output channels, N groups.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from genjax.errors import UserError
from genjax.nn.convolution import PaddingMode
from genjax.nn.split_by_hand import neighbouring_rows, splits_batch, splits_rows
from genjax.parallel.mesh import BATCH_AXES, SEQUENCE_AXIS


def grouped_conv2d(
    inputs: Float[Array, "B H W C"],
    kernel: Float[Array, "kh kw c F"],
    groups: int,
    padding_mode: PaddingMode = "zeros",
) -> Float[Array, "B H W F"]:
    """Convolution of an image in groups, with stride 1 and an output as large as the input.

    Output channels `n * F / N` to `(n + 1) * F / N - 1` are a convolution of input channels
    `n * C / N` to `(n + 1) * C / N - 1` with the same slice of the kernel's last axis. As in all of
    deep learning, the kernel is not flipped.

    The CPU's convolutions have no fast path for groups, so there it is a few batched matrix
    products. Over several devices, XLA's partitioner would gather the whole batch of a convolution
    in groups on every device; here each device convolves its own examples, and of examples whose
    rows are split too its own rows, for which it takes those at the seams from its neighbours.

    Args:
        inputs: images or features.
        kernel: of C / N input channels a group.
        groups: the number of groups N.
        padding_mode: what lies beyond the border: "zeros", or the opposite side ("circular").

    Raises:
        UserError: the groups do not divide the channels, or the kernel does not fit the groups.
    """
    channels, features = inputs.shape[-1], kernel.shape[-1]
    if channels % groups or features % groups:
        raise UserError(
            f"groups = {groups} must divide the {channels} input and {features} output channels"
        )
    if kernel.shape[2] * groups != channels:
        raise UserError(
            f"{groups} groups of {channels} channels need a kernel of {channels // groups} input "
            f"channels, not {kernel.shape[2]}"
        )

    def by_platform(padded: Array, kernel: Array) -> Array:
        return lax.platform_dependent(
            padded,
            kernel,
            cpu=lambda x, k: by_matrix_products(x, k, groups),
            default=lambda x, k: by_convolution(x, k, groups),
        )

    return _each_device_its_part(by_platform, inputs, kernel, padding_mode)


def _each_device_its_part(
    convolve: Callable[[Array, Array], Array],
    inputs: Array,
    kernel: Array,
    padding_mode: PaddingMode,
) -> Array:
    """Pad and convolve; over several devices each its examples, and its rows of them."""
    size = kernel.shape[:2]

    def whole(inputs: Array, kernel: Array) -> Array:
        return convolve(_pad(inputs, size, padding_mode), kernel)

    def rows(inputs: Array, kernel: Array) -> Array:
        if size[0] > 1:
            inputs = neighbouring_rows(inputs, size[0] // 2)
        return convolve(_pad(inputs, (1, size[1]), padding_mode), kernel)

    if not splits_batch(inputs.shape[0]):
        return whole(inputs, kernel)
    # Borders of zeros alone, and as many on either side.
    by_rows = splits_rows(inputs.shape[1]) and padding_mode == "zeros" and size[0] % 2 == 1
    split = P(BATCH_AXES, SEQUENCE_AXIS) if by_rows else P(BATCH_AXES)
    function = rows if by_rows else whole
    return jax.shard_map(function, in_specs=(split, P()), out_specs=split)(inputs, kernel)


def _pad(inputs: Array, size: tuple[int, ...], padding_mode: PaddingMode) -> Array:
    widths = ((0, 0), *(((k - 1) // 2, k // 2) for k in size), (0, 0))
    return jnp.pad(inputs, widths, mode="wrap" if padding_mode == "circular" else "constant")


def by_convolution(
    padded: Float[Array, "B Hp Wp C"], kernel: Float[Array, "kh kw c F"], groups: int
) -> Float[Array, "B H W F"]:
    """The compiler's own convolution in groups, of images that are already padded."""
    return lax.conv_general_dilated(
        padded,
        kernel,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def by_matrix_products(
    padded: Float[Array, "B Hp Wp C"], kernel: Float[Array, "kh kw c F"], groups: int
) -> Float[Array, "B H W F"]:
    """The same as one product a kernel row, batched over groups.

    The columns that a kernel's row spans lie side by side as features of the product: the longer
    the inner axis the better, but all rows at once would take kh times the memory.
    """
    batch, padded_height, padded_width, channels = padded.shape
    rows, columns, inner, features = kernel.shape
    height, width = padded_height - rows + 1, padded_width - columns + 1
    by_group = padded.reshape(batch, padded_height, padded_width, groups, channels // groups)
    by_group = jnp.moveaxis(by_group, 3, 0)
    spans = jnp.concatenate(
        [by_group[:, :, :, column : column + width] for column in range(columns)], axis=-1
    )
    kernels = kernel.reshape(rows, columns * inner, groups, features // groups)
    outputs = jnp.zeros((), padded.dtype)
    for row in range(rows):
        slab = spans[:, :, row : row + height]
        outputs += jnp.einsum("nbhwi,inf->nbhwf", slab, kernels[row])
    return jnp.moveaxis(outputs, 0, 3).reshape(batch, height, width, features)
