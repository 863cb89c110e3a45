"""The layers of StyleGAN2: equalised learning rates, modulated convolutions, the mapping network.

Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN"; Karras et al. 2018,
"Progressive growing of GANs" (equalised learning rate, minibatch standard deviation).

Letters: B batch, H height, W width, C input channels, F output channels, D style size, Z latent
size, L layers.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.nn.convolution import PaddingMode, conv2d, conv_transpose2d
from genjax.nn.dense import matmul
from genjax.nn.resample import Filter, normalized, upfirdn2d

LOW_PASS: Filter = (1, 3, 3, 1)
"""StyleGAN2's resampling filter, before it is normalised."""

Images = Float[Array, "B H W C"]


def leaky_relu(inputs: Float[Array, "..."], gain: float = math.sqrt(2.0)) -> Float[Array, "..."]:
    """Leaky ReLU of slope 0.2, times a gain that keeps the variance of a normal input."""
    return jnp.where(inputs >= 0, inputs * gain, inputs * (0.2 * gain))


def normalize_second_moment(
    inputs: Float[Array, "B D"], epsilon: float = 1e-8
) -> Float[Array, "B D"]:
    """Scale each row to a mean square of one."""
    return inputs * lax.rsqrt(jnp.mean(jnp.square(inputs), -1, keepdims=True) + epsilon)


class EqualizedDense(nn.Module):
    """A dense layer whose kernel is kept at unit variance and scaled when used.

    Attributes:
        features: output features F.
        learning_rate_multiplier: how much slower than the rest its parameters change.
        bias_init: initial bias.
        activate: whether a leaky ReLU follows.
    """

    features: int
    learning_rate_multiplier: float = 1.0
    bias_init: float = 0.0
    activate: bool = False

    @nn.compact
    def __call__(self, inputs: Float[Array, "B C"]) -> Float[Array, "B F"]:
        """Map [B, C] to [B, F] in the dtype of `inputs`."""
        multiplier, fan_in = self.learning_rate_multiplier, inputs.shape[-1]
        init = nn.initializers.normal(1.0 / multiplier)
        kernel = self.param("kernel", init, (fan_in, self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias_init), (self.features,))
        kernel = (kernel * (multiplier / math.sqrt(fan_in))).astype(inputs.dtype)
        outputs = matmul(inputs, kernel) + (bias * multiplier).astype(inputs.dtype)
        return leaky_relu(outputs) if self.activate else outputs


def resampled_convolution(
    images: Images,
    kernel: Float[Array, "K K C F"],
    *,
    up: int = 1,
    down: int = 1,
    taps: Filter = LOW_PASS,
    padding_mode: PaddingMode = "zeros",
) -> Float[Array, "B H2 W2 F"]:
    """A convolution, 1x1 or 3x3, that also doubles or halves the size through a low-pass filter.

    Growing takes the transposed convolution first and filters its result, which costs a quarter of
    filtering first; shrinking filters first and then takes every other pixel.

    Args:
        images: [B, H, W, C].
        kernel: [K, K, C, F], K 1 or 3.
        up: 1, or 2 to double the size.
        down: 1, or 2 to halve it.
        taps: the filter; it is normalised here.
        padding_mode: what lies beyond the border.
    """
    taps, size = normalized(taps), kernel.shape[0]
    before, after = (len(taps) + up - 1) // 2, (len(taps) - up) // 2
    if up == 2 and size == 1:
        return upfirdn2d(
            conv2d(images, kernel),
            taps,
            up=2,
            padding=(before, after, before, after),
            gain=4.0,
            padding_mode=padding_mode,
        )
    if up == 2:
        # Zeros between the pixels, a convolution that keeps the size, and the filter: put together
        # the borders shrink by the kernel's.
        half = size // 2
        outputs = conv_transpose2d(images, kernel.swapaxes(2, 3), padding_mode=padding_mode)
        before, after = before + half - (size - 1), after + half - (size - 2)
        if padding_mode == "circular":
            # What would be one more row and column at the end is the first of the next period.
            after += 1
        pads = (before, after, before, after)
        return upfirdn2d(outputs, taps, padding=pads, gain=4.0, padding_mode=padding_mode)
    if down == 2:
        half = size // 2
        before, after = (len(taps) - 1) // 2 + half, (len(taps) - 2) // 2 + half
        pads = (before, after, before, after)
        if size == 1:
            images = upfirdn2d(images, taps, down=2, padding=pads, padding_mode=padding_mode)
            return conv2d(images, kernel)
        images = upfirdn2d(images, taps, padding=pads, padding_mode=padding_mode)
        return conv2d(images, kernel, stride=2, padding=0)
    return conv2d(images, kernel, padding_mode=padding_mode)


class EqualizedConv(nn.Module):
    """A convolution with equalised learning rate, resampling and activation.

    Attributes:
        features: output channels F.
        kernel_size: 1 or 3.
        up: 2 to double the size.
        down: 2 to halve it.
        use_bias: whether to add a bias.
        activate: whether a leaky ReLU follows.
        gain: factor of the result.
        taps: resampling filter.
        padding_mode: what lies beyond the border.
        dtype: dtype of computation.
    """

    features: int
    kernel_size: int = 3
    up: int = 1
    down: int = 1
    use_bias: bool = True
    activate: bool = True
    gain: float = 1.0
    taps: Filter = LOW_PASS
    padding_mode: PaddingMode = "zeros"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "B H2 W2 F"]:
        """Map [B, H, W, C] to [B, H up / down, .., F]."""
        size, channels = self.kernel_size, images.shape[-1]
        shape = (size, size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        # The gain of a layer without activation goes into its kernel.
        scale = 1.0 / math.sqrt(size**2 * channels) * (1.0 if self.activate else self.gain)
        outputs = resampled_convolution(
            images.astype(self.dtype),
            (kernel * scale).astype(self.dtype),
            up=self.up,
            down=self.down,
            taps=self.taps,
            padding_mode=self.padding_mode,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            outputs += (bias * (1.0 if self.activate else self.gain)).astype(self.dtype)
        return leaky_relu(outputs, math.sqrt(2.0) * self.gain) if self.activate else outputs


def modulated_conv2d(
    images: Images,
    kernel: Float[Array, "K K C F"],
    styles: Float[Array, "B C"],
    *,
    demodulate: bool = True,
    up: int = 1,
    taps: Filter = LOW_PASS,
    padding_mode: PaddingMode = "zeros",
    epsilon: float = 1e-8,
) -> Float[Array, "B H2 W2 F"]:
    """A convolution whose input channels each example scales for itself.

    Equation 1 and 3 of the paper: the kernel of example b is `kernel * styles[b]`, divided by its
    norm over input channels and places if it is demodulated. Scaling the images before and
    after one shared convolution is the same, and never needs a kernel for each example.

    Args:
        images: [B, H, W, C].
        kernel: [K, K, C, F].
        styles: factors of the input channels, float32 [B, C].
        demodulate: divide by the norm of each example's kernel.
        up: 2 to double the size.
        taps: resampling filter.
        padding_mode: what lies beyond the border.
        epsilon: added to the squared norm.
    """
    scaled = images * styles.astype(images.dtype)[:, None, None]
    outputs = resampled_convolution(
        scaled, kernel.astype(images.dtype), up=up, taps=taps, padding_mode=padding_mode
    )
    if demodulate:
        squares = jnp.sum(jnp.square(kernel), (0, 1))
        norms = lax.rsqrt(jnp.matmul(jnp.square(styles), squares) + epsilon)
        outputs *= norms.astype(outputs.dtype)[:, None, None]
    return outputs


def minibatch_standard_deviation(
    images: Images, group_size: int = 4, features: int = 1
) -> Float[Array, "B H W C2"]:
    """Append to each example how much its group varies, as constant channels.

    A group is `group_size` examples that follow one another (or the largest smaller number that
    divides the batch), so that the result does not depend on the number of devices. Where each has
    whole groups they exchange nothing; otherwise the few sums of a group.

    Args:
        images: [B, H, W, C], C a multiple of `features`.
        group_size: examples of a group.
        features: channels to append; each averages its own part of the input channels.

    Returns:
        [B, H, W, C + features].
    """
    batch, height, width, channels = images.shape
    size = next(n for n in range(min(group_size, batch), 0, -1) if batch % n == 0)
    groups = images.astype(jnp.promote_types(images.dtype, jnp.float32)).reshape(
        batch // size, size, height, width, features, channels // features
    )
    centred = groups - groups.mean(1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), 1) + 1e-8)
    statistic = deviation.mean((1, 2, 4)).astype(images.dtype)
    # Not `jnp.repeat`, whose indices a batch split over devices would gather.
    rows = jnp.broadcast_to(statistic[:, None], (batch // size, size, features))
    rows = rows.reshape(batch, 1, 1, features)
    return jnp.concatenate([images, jnp.broadcast_to(rows, (*images.shape[:3], features))], -1)


class MappingNetwork(nn.Module):
    """From latents and labels to a style, by dense layers that learn slowly.

    Attributes:
        style_size: features D of the result and of the layers between.
        num_layers: dense layers.
        num_classes: classes of the labels; 0 for none.
        learning_rate_multiplier: how much slower than the rest the layers change.
    """

    style_size: int = 512
    num_layers: int = 8
    num_classes: int = 0
    learning_rate_multiplier: float = 0.01

    @nn.compact
    def __call__(
        self, latents: Float[Array, "B Z"] | None, labels: Int[Array, "B"] | None = None
    ) -> Float[Array, "B D"]:
        """Map latents [B, Z] (or none, for a network of labels alone) and labels [B]."""
        parts = []
        if latents is not None:
            parts.append(normalize_second_moment(latents))
        if self.num_classes:
            assert labels is not None, "a network with classes needs labels"
            classes = jax.nn.one_hot(labels, self.num_classes)
            embedding = EqualizedDense(self.style_size, name="embedding")(classes)
            parts.append(normalize_second_moment(embedding))
        hidden = jnp.concatenate(parts, -1)
        for number in range(self.num_layers):
            hidden = EqualizedDense(
                self.style_size,
                self.learning_rate_multiplier,
                activate=True,
                name=f"layers_{number}",
            )(hidden)
        return hidden


def channels_at(size: tuple[int, int], channel_base: int, channel_max: int) -> int:
    """Channels at a size: `channel_base` over its longer side, at most the maximum."""
    return max(min(channel_base // max(size), channel_max), 1)
