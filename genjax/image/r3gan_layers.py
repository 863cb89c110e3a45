"""Layers of R3GAN: residual blocks, the learned basis, resampling.

Paper: Huang, Gokaslan, Kuleshov and Tompkin 2024, "The GAN is dead; long live the GAN! A modern
GAN baseline".

Letters: B batch, H height, W width, C channels, E expanded channels, F output features.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.errors import UserError
from genjax.nn.convolution import Conv, PaddingMode
from genjax.nn.grouped_convolution import grouped_conv2d
from genjax.nn.resample import downsample2d, normalized, upsample2d

LEAKY_SLOPE = 0.2
"""Slope of the activation below zero."""

GAIN = math.sqrt(2 / (1 + LEAKY_SLOPE**2))
"""What a leaky rectifier takes from the root mean square of its input; initial kernels give it."""

BILINEAR = normalized((1, 2, 1))
"""The filter of every change of resolution: doubling with it is linear interpolation."""


def scaled_normal(gain: float = 1.0) -> nn.initializers.Initializer:
    """Normal initialiser of standard deviation `gain / sqrt(fan_in)`."""
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


class BiasedActivation(nn.Module):
    """A bias for each channel, then a leaky rectifier."""

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Apply it; the result has the input's dtype."""
        bias = self.param("bias", nn.initializers.zeros, (inputs.shape[-1],))
        return jax.nn.leaky_relu(inputs + bias.astype(inputs.dtype), LEAKY_SLOPE)


class GroupedConv(nn.Module):
    """A convolution in groups as large as its input, with as many output channels.

    Attributes:
        kernel_size: height and width of the kernel.
        group_size: channels of a group; None makes one group of all.
        kernel_init: initialiser of the kernel.
        padding_mode: what lies beyond the border.
    """

    kernel_size: int
    group_size: int | None
    kernel_init: nn.initializers.Initializer
    padding_mode: PaddingMode

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Convolve, [B, H, W, C] to [B, H, W, C], in the input's dtype."""
        channels = inputs.shape[-1]
        inner = self.group_size or channels
        if channels % inner:
            raise UserError(
                f"group_size = {inner} must divide the {channels} channels inside a residual block "
                "(a stage's width times the expansion); change one of them"
            )
        shape = (self.kernel_size, self.kernel_size, inner, channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        groups = channels // inner
        return grouped_conv2d(inputs, kernel.astype(inputs.dtype), groups, self.padding_mode)


class ResidualBlock(nn.Module):
    """Inverted bottleneck: 1x1 to more channels, 3x3 in groups, 1x1 back, added to the input.

    There is no normalisation: as in Fixup (Zhang, Dauphin and Ma 2019), the last kernel starts at
    zero, so that a block starts as the identity, and the others are scaled by `num_blocks**-1/4`.

    Attributes:
        expanded: channels E between the 1x1 convolutions.
        group_size: channels of a group of the 3x3 convolution; None makes one group of all.
        num_blocks: number of residual blocks in the whole network.
        padding_mode: what lies beyond the border.
        dtype: dtype of computation. Parameters are float32.
    """

    expanded: int
    group_size: int | None
    num_blocks: int
    padding_mode: PaddingMode = "zeros"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Apply the block, [B, H, W, C] to [B, H, W, C]."""
        # Two of a block's three kernels start away from zero: the power is -1 / (2 * 3 - 2).
        initial = scaled_normal(GAIN * self.num_blocks**-0.25)
        inputs = inputs.astype(self.dtype)
        outputs = pointwise(self.expanded, initial, self.dtype, name="expand")(inputs)
        outputs = BiasedActivation(name="activation0")(outputs)
        grouped = GroupedConv(3, self.group_size, initial, self.padding_mode, name="grouped")
        outputs = BiasedActivation(name="activation1")(grouped(outputs))
        project = pointwise(inputs.shape[-1], nn.initializers.zeros, self.dtype, name="project")
        return inputs + project(outputs)


def pointwise(
    features: int, kernel_init: nn.initializers.Initializer, dtype: DTypeLike, *, name: str
) -> Conv:
    """A 1x1 convolution without bias."""
    return Conv(
        features, kernel_size=1, use_bias=False, kernel_init=kernel_init, dtype=dtype, name=name
    )


class Upsample(nn.Module):
    """Doubles the resolution, after a 1x1 convolution if the number of channels changes.

    Attributes:
        features: output channels F.
        padding_mode: what lies beyond the border.
        dtype: dtype of computation.
    """

    features: int
    padding_mode: PaddingMode = "zeros"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        """Grow, [B, H, W, C] to [B, 2 H, 2 W, F]."""
        inputs = inputs.astype(self.dtype)
        if inputs.shape[-1] != self.features:
            mix = pointwise(self.features, scaled_normal(), self.dtype, name="mix")
            inputs = mix(inputs)
        return upsample2d(inputs, BILINEAR, padding_mode=self.padding_mode)


class Downsample(nn.Module):
    """Halves the resolution, before a 1x1 convolution if the number of channels changes.

    Attributes:
        features: output channels F.
        padding_mode: what lies beyond the border.
        dtype: dtype of computation.
    """

    features: int
    padding_mode: PaddingMode = "zeros"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        """Shrink, [B, H, W, C] to [B, H / 2, W / 2, F]."""
        inputs = downsample2d(inputs.astype(self.dtype), BILINEAR, padding_mode=self.padding_mode)
        if inputs.shape[-1] == self.features:
            return inputs
        return pointwise(self.features, scaled_normal(), self.dtype, name="mix")(inputs)
