"""Convolutions of clips over time, and over space and then over time.

Made of two-dimensional convolutions and matrix products, which are fast everywhere. Those over
space and time at once are in `genjax.nn.convolution3d`.

Letters: B batch, T time, H height, W width, C input channels, F output channels, M intermediate
channels, N kernel size in time, K kernel size in height and width.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.nn.convolution import Conv
from genjax.nn.dense import matmul

TimeBorder = Literal["zeros", "repeat"]
"""What lies before a clip's first frame and after its last: black, or that frame again."""

Clips = Float[Array, "B T H W C"]


def _taps(
    clips: Array, size: int, stride: int, causal: bool, time_border: TimeBorder
) -> list[Array]:
    """For each place in a kernel's time the frames that it reads, [B, ceil(T / stride), ..]."""
    before = size - 1 if causal else (size - 1) // 2
    widths = [(0, 0)] * clips.ndim
    widths[1] = (before, size - 1 - before)
    mode = "edge" if time_border == "repeat" else "constant"
    padded = jnp.pad(clips, widths, mode=mode) if size > 1 else clips
    last = stride * ((clips.shape[1] - 1) // stride)
    return [padded[:, tap : tap + last + 1 : stride] for tap in range(size)]


def temporal_conv(
    clips: Clips,
    kernel: Float[Array, "N C F"],
    *,
    stride: int = 1,
    causal: bool = False,
    time_border: TimeBorder = "zeros",
) -> Float[Array, "B T2 H W F"]:
    """Convolve each pixel's course in time (cross-correlation, as in all of deep learning).

    Args:
        clips: [B, T, H, W, C].
        kernel: [N, C, F], its last place the latest frame.
        stride: step of the kernel in time.
        causal: output t sees frames `stride t - N + 1` to `stride t`, none that follow. Otherwise
            the kernel is centred (of even N, it reaches one frame further ahead than back).
        time_border: what it sees beyond the clip's ends.

    Returns:
        [B, ceil(T / stride), H, W, F].
    """
    taps = _taps(clips, kernel.shape[0], stride, causal, time_border)
    kernel = kernel.astype(clips.dtype)
    outputs = matmul(taps[0], kernel[0])
    for tap, weights in zip(taps[1:], kernel[1:], strict=True):
        outputs += matmul(tap, weights)
    return outputs


class TemporalConv(nn.Module):
    """A convolution over time alone with its parameters.

    Attributes:
        features: number of output channels F.
        kernel_size: number N of frames that the kernel spans.
        stride: step of the kernel in time.
        causal: whether an output sees only the present and the past.
        time_border: what it sees beyond the clip's ends.
        use_bias: whether to add a bias.
        kernel_init: initialiser of the kernel [N, C, F]; the bias starts at zero.
        dtype: dtype of computation. Parameters are float32.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    causal: bool = False
    time_border: TimeBorder = "zeros"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, clips: Clips) -> Float[Array, "B T2 H W F"]:
        """Convolve, [B, T, H, W, C] to [B, ceil(T / stride), H, W, F]."""
        shape = (self.kernel_size, clips.shape[-1], self.features)
        outputs = temporal_conv(
            clips.astype(self.dtype),
            self.param("kernel", self.kernel_init, shape),
            stride=self.stride,
            causal=self.causal,
            time_border=self.time_border,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            outputs += bias.astype(self.dtype)
        return outputs


def intermediate_channels(
    channels: int, features: int, kernel_size: int, time_kernel_size: int
) -> int:
    """The width M at which a (2+1)D convolution has as many weights as a whole one.

    K K C M + N M F weights are to equal N K K C F; rounded down, but never to nothing.

    Args:
        channels: number of input channels C.
        features: number of output channels F.
        kernel_size: height and width K of the kernel.
        time_kernel_size: number N of frames that it spans.
    """
    area = kernel_size**2
    whole = time_kernel_size * area * channels * features
    return max(1, whole // (area * channels + time_kernel_size * features))


class Conv2Plus1D(nn.Module):
    """A convolution over height and width, then one over time: (2+1)D (Tran et al. 2018).

    Of as many parameters as the whole three-dimensional kernel, with one more non-linearity.

    Attributes:
        features: number of output channels F.
        kernel_size: height and width K of the first kernel.
        time_kernel_size: number N of frames that the second spans; by default as many as K.
        intermediate: number M of channels between them; by default `intermediate_channels`.
        activation: non-linearity between them, or None.
        stride: step of the first kernel in rows and columns.
        time_stride: step of the second kernel in time.
        padding: zeros around each frame; half of the kernel by default.
        causal: whether an output sees only the present and the past.
        time_border: what the second sees beyond the ends of what the first put out.
        use_bias: whether to add a bias after either.
        kernel_init: initialiser of the kernels [K, K, C, M] and [N, M, F]; biases start at zero.
        dtype: dtype of computation. Parameters are float32.
    """

    features: int
    kernel_size: int = 3
    time_kernel_size: int | None = None
    intermediate: int | None = None
    activation: Callable[[Array], Array] | None = nn.relu
    stride: int = 1
    time_stride: int = 1
    padding: int | None = None
    causal: bool = False
    time_border: TimeBorder = "zeros"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, clips: Clips) -> Float[Array, "B T2 H2 W2 F"]:
        """Convolve, [B, T, H, W, C] to [B, ceil(T / time_stride), H2, W2, F]."""
        frames = self.time_kernel_size or self.kernel_size
        width = self.intermediate or intermediate_channels(
            clips.shape[-1], self.features, self.kernel_size, frames
        )
        images = Conv(
            width,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="spatial",
        )(clips.reshape(-1, *clips.shape[2:]))
        if self.activation is not None:
            images = self.activation(images)
        return TemporalConv(
            self.features,
            frames,
            stride=self.time_stride,
            causal=self.causal,
            time_border=self.time_border,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="temporal",
        )(images.reshape(*clips.shape[:2], *images.shape[1:]))
