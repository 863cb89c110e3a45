"""Three-dimensional convolutions over time, height and width, and their transposes.

Letters: B batch, T time, H height, W width, C input channels, F output channels; J, K, L frames,
rows and columns of a kernel.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.nn.convolution import conv2d

Clips = Float[Array, "B T H W C"]
Kernel = Float[Array, "J K L C F"]
TimeSpace = tuple[int, int]
"""A number for time, and one for height and width."""
Padding = tuple[int | Literal["causal"], int]
"""Frames of zeros before and after a clip, and zeros around each frame. "causal": before the clip
alone, as many as the kernel has frames but one, so that an output sees no frame after its own."""
_Borders = tuple[int, int, int]
"""Frames of zeros before a clip and after it, and zeros around each frame."""

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")

# ---- two forms of the convolution -------------------------------------------------------------


def _whole(clips: Array, kernel: Array, stride: TimeSpace, padding: _Borders) -> Array:
    """As XLA has it."""
    (time, space), (before, after, border) = stride, padding
    return lax.conv_general_dilated(
        clips,
        kernel,
        (time, space, space),
        [(before, after), (border, border), (border, border)],
        dimension_numbers=_LAYOUT,
    )


def _by_tap(clips: Array, kernel: Array, stride: TimeSpace, padding: _Borders) -> Array:
    """A sum over the kernel's frames of two-dimensional convolutions, time folded into the batch.

    XLA:CPU has a fast path for two dimensions only. Frames that lie in the padding are left out.
    """
    (step, space), (before, after, border) = stride, padding
    batch, frames, *image_shape = clips.shape
    count = (frames + before + after - len(kernel)) // step + 1
    total: Array | None = None
    for tap, two_dimensional in enumerate(kernel):
        # Output t of this tap reads frame t step + tap - before: those from `first` on, below
        # `last`, read frames that are there.
        first = max(-((tap - before) // step), 0)
        last = min((frames - 1 - tap + before) // step + 1, count)
        if first >= last:
            continue
        start = first * step + tap - before
        read = clips[:, start : start + (last - first - 1) * step + 1 : step]
        folded = read.reshape(-1, *image_shape)
        outputs = conv2d(folded, two_dimensional, stride=space, padding=border)
        outputs = outputs.reshape(batch, last - first, *outputs.shape[1:])
        outputs = jnp.pad(outputs, ((0, 0), (first, count - last), (0, 0), (0, 0), (0, 0)))
        total = outputs if total is None else total + outputs
    if total is None:
        raise ValueError(f"a kernel of {len(kernel)} frames sees none of the clips' {frames}")
    return total


def _dispatch(function: Callable[..., Array], *operands: Array) -> Array:
    """Call `function(*operands, form)` with the form of the convolution that the backend wants."""
    return lax.platform_dependent(
        *operands,
        cpu=functools.partial(function, form=_by_tap),
        default=functools.partial(function, form=_whole),
    )


# ---- the convolution, its two transposes, and their derivatives -------------------------------
#
# As in two dimensions: each is a derivative of the others, so that whatever the order of
# differentiation each runs in the form of its backend, and nothing is kept for the other form.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(clips: Array, kernel: Array, stride: TimeSpace, padding: _Borders) -> Array:
    def convolve(clips: Array, kernel: Array, form: Any) -> Array:
        return form(clips, kernel, stride, padding)

    return _dispatch(convolve, clips, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _spread(
    outputs: Array,
    kernel: Array,
    size: tuple[int, int, int],
    stride: TimeSpace,
    padding: _Borders,
) -> Array:
    """The transpose of `_convolve` in its clips, which are of `size`."""

    def spread(outputs: Array, kernel: Array, form: Any) -> Array:
        # Linear, so that where its derivative is taken does not matter.
        clips = jnp.zeros((len(outputs), *size, kernel.shape[3]), outputs.dtype)
        _, transpose = jax.vjp(lambda x: form(x, kernel, stride, padding), clips)
        return transpose(outputs)[0]

    return _dispatch(spread, outputs, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _correlate(
    clips: Array,
    outputs: Array,
    size: tuple[int, int, int],
    stride: TimeSpace,
    padding: _Borders,
) -> Array:
    """The transpose of `_convolve` in its kernel, which is of `size`."""

    def correlate(clips: Array, outputs: Array, form: Any) -> Array:
        kernel = jnp.zeros((*size, clips.shape[4], outputs.shape[4]), clips.dtype)
        _, transpose = jax.vjp(lambda k: form(clips, k, stride, padding), kernel)
        return transpose(outputs)[0]

    return _dispatch(correlate, clips, outputs)


def _convolve_forward(
    clips: Array, kernel: Array, stride: TimeSpace, padding: _Borders
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(clips, kernel, stride, padding), (clips, kernel)


def _convolve_backward(
    stride: TimeSpace, padding: _Borders, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    clips, kernel = saved
    return (
        _spread(cotangent, kernel, clips.shape[1:4], stride, padding),
        _correlate(clips, cotangent, kernel.shape[:3], stride, padding),
    )


def _spread_forward(
    outputs: Array,
    kernel: Array,
    size: tuple[int, int, int],
    stride: TimeSpace,
    padding: _Borders,
) -> tuple[Array, tuple[Array, Array]]:
    return _spread(outputs, kernel, size, stride, padding), (outputs, kernel)


def _spread_backward(
    size: tuple[int, int, int],
    stride: TimeSpace,
    padding: _Borders,
    saved: tuple[Array, Array],
    cotangent: Array,
) -> tuple[Array, Array]:
    del size
    outputs, kernel = saved
    return (
        _convolve(cotangent, kernel, stride, padding),
        _correlate(cotangent, outputs, kernel.shape[:3], stride, padding),
    )


def _correlate_forward(
    clips: Array,
    outputs: Array,
    size: tuple[int, int, int],
    stride: TimeSpace,
    padding: _Borders,
) -> tuple[Array, tuple[Array, Array]]:
    return _correlate(clips, outputs, size, stride, padding), (clips, outputs)


def _correlate_backward(
    size: tuple[int, int, int],
    stride: TimeSpace,
    padding: _Borders,
    saved: tuple[Array, Array],
    cotangent: Array,
) -> tuple[Array, Array]:
    del size
    clips, outputs = saved
    return (
        _spread(outputs, cotangent, clips.shape[1:4], stride, padding),
        _convolve(clips, cotangent, stride, padding),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)
_spread.defvjp(_spread_forward, _spread_backward)
_correlate.defvjp(_correlate_forward, _correlate_backward)


# ---- public functions -------------------------------------------------------------------------


def conv3d(
    clips: Clips,
    kernel: Kernel,
    *,
    stride: TimeSpace = (1, 1),
    padding: Padding | None = None,
) -> Float[Array, "B T2 H2 W2 F"]:
    """Convolve clips with zeros around them, differentiable to any order.

    Args:
        clips: [B, T, H, W, C].
        kernel: [J, K, L, C, F].
        stride: steps of the kernel in time, and in rows and columns.
        padding: frames of zeros on either side in time, and border of each frame; by default half
            of the kernel, which for odd kernels at stride 1 keeps the size. If it is "causal" in
            time, output t sees frames `stride t - J + 1` to `stride t`, none that follow.

    Returns:
        [B, (T + 2 padding - J) // stride + 1, .., .., F]; "causal" [B, ceil(T / stride), ..].
    """
    time, border = (kernel.shape[0] // 2, kernel.shape[1] // 2) if padding is None else padding
    borders = (kernel.shape[0] - 1, 0, border) if time == "causal" else (time, time, border)
    return _convolve(clips, kernel.astype(clips.dtype), stride, borders)


def conv_transpose3d(
    clips: Float[Array, "B T H W F"],
    kernel: Kernel,
    *,
    stride: TimeSpace = (2, 2),
    padding: TimeSpace = (0, 0),
) -> Float[Array, "B T2 H2 W2 C"]:
    """The transpose of `conv3d` in its clips: each input spreads a kernel of outputs.

    Args:
        clips: [B, T, H, W, F].
        kernel: [J, K, L, C, F], as `conv3d` takes it: F is what goes in here, C what comes out.
        stride: steps between kernels in the output, in time and in space.
        padding: what to cut off the output on either side, in time and in space.

    Returns:
        [B, stride (T - 1) + J - 2 padding, .., .., C].
    """
    strides, pads = (stride[0], stride[1], stride[1]), (padding[0], padding[1], padding[1])
    size = tuple(
        step * (length - 1) + width - 2 * pad
        for step, length, width, pad in zip(
            strides, clips.shape[1:4], kernel.shape[:3], pads, strict=True
        )
    )
    borders = (padding[0], padding[0], padding[1])
    return _spread(clips, kernel.astype(clips.dtype), size, stride, borders)


class Conv3D(nn.Module):
    """A three-dimensional convolution with its parameters.

    Attributes:
        features: number of output channels F.
        kernel_size: frames J of the kernel, and its height and width K.
        stride: steps in time and in space.
        padding: frames and border on each side, or "causal" and the border; half of the kernel by
            default.
        use_bias: whether to add a bias.
        kernel_init: initialiser of the kernel [J, K, K, C, F]; the bias starts at zero.
        dtype: dtype of computation. Parameters are float32.
    """

    features: int
    kernel_size: TimeSpace = (3, 3)
    stride: TimeSpace = (1, 1)
    padding: Padding | None = None
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, clips: Clips) -> Float[Array, "B T2 H2 W2 F"]:
        """Convolve, [B, T, H, W, C] to [B, T2, H2, W2, F]."""
        time, space = self.kernel_size
        shape = (time, space, space, clips.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        outputs = conv3d(clips.astype(self.dtype), kernel, stride=self.stride, padding=self.padding)
        return _biased(self, outputs)


class ConvTranspose3D(nn.Module):
    """A transposed three-dimensional convolution with its parameters.

    Attributes:
        features: number of output channels C.
        kernel_size: frames J of the kernel, and its height and width K.
        stride: factors by which time and space grow.
        padding: what is cut off the output on each side, in time and in space.
        use_bias: whether to add a bias.
        kernel_init: initialiser of the kernel [J, K, K, features, F], F the input channels.
        dtype: dtype of computation. Parameters are float32.
    """

    features: int
    kernel_size: TimeSpace = (4, 4)
    stride: TimeSpace = (2, 2)
    padding: TimeSpace = (1, 1)
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, clips: Float[Array, "B T H W F"]) -> Float[Array, "B T2 H2 W2 C"]:
        """Grow, [B, T, H, W, F] to [B, T2, H2, W2, C]."""
        time, space = self.kernel_size
        shape = (time, space, space, self.features, clips.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape)
        outputs = conv_transpose3d(
            clips.astype(self.dtype), kernel, stride=self.stride, padding=self.padding
        )
        return _biased(self, outputs)


def _biased(layer: Conv3D | ConvTranspose3D, outputs: Array) -> Array:
    if not layer.use_bias:
        return outputs
    bias = layer.param("bias", nn.initializers.zeros, (layer.features,))
    return outputs + bias.astype(layer.dtype)
