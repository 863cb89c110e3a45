"""A discriminator of clips: StyleGAN2's blocks for each frame, mixed in time.

Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", for the blocks and the
head; Tran et al. 2018, "A closer look at spatiotemporal convolutions for action recognition", for
the division of a three-dimensional convolution into one of space and one of time; Miyato and Koyama
2018, "cGANs with projection discriminator", for classes.

Letters: B batch, T time, H height, W width, C channels, F features.
"""

import itertools
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.image.labels import check_labels
from genjax.image.sizes import resolutions
from genjax.image.stylegan2_layers import (
    EqualizedConv,
    EqualizedDense,
    MappingNetwork,
    channels_at,
    leaky_relu,
    minibatch_standard_deviation,
)
from genjax.nn.layout import split_images
from genjax.nn.temporal_convolution import temporal_conv


class StyleGAN2ClipDiscriminator(nn.Module):
    """Residual blocks that halve the size of each frame, and convolutions that halve time between.

    The blocks of the larger sizes see single frames. From `mixing_size` on each is followed by a
    convolution over time. There is no batch normalisation; minibatch standard deviation compares
    whole clips.

    Attributes:
        clip_shape: (T, H, W, C) of the clips.
        num_classes: classes of the labels; 0 for none.
        channel_base: channels at a resolution are this over its longer side,
        channel_max: but at most this.
        mapping_layers: dense layers of the network of the labels.
        mixing_size: longer side of the largest features that are mixed in time.
        group_size: clips of a group of the minibatch standard deviation; 1 leaves it out.
        dtype: dtype of the blocks; the head is float32.
    """

    clip_shape: tuple[int, int, int, int]
    num_classes: int = 0
    channel_base: int = 4096
    channel_max: int = 256
    mapping_layers: int = 2
    mixing_size: int = 16
    group_size: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        clips: Float[Array, "B T H W C"],
        labels: Int[Array, "B"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B"]:
        """Logits, float32 [B]: high for clips taken to be real."""
        del train
        check_labels(labels, self.num_classes)
        dtype = jnp.promote_types(clips.dtype, jnp.float32)
        sizes = resolutions(self.clip_shape[1:])[::-1]
        frames = clips.shape[1]
        hidden = clips.astype(dtype).reshape(-1, *clips.shape[2:])
        size = sizes[0]
        name = f"{size[0]}x{size[1]}_image"
        hidden = EqualizedConv(self._features(size), 1, dtype=self.dtype, name=name)(hidden)
        for size, smaller in itertools.pairwise(sizes):
            hidden = self._block(hidden, size, smaller)
            if max(smaller) <= self.mixing_size:
                hidden = hidden.reshape(len(clips), frames, *hidden.shape[1:])
                name = f"{smaller[0]}x{smaller[1]}_time"
                hidden = EqualizedTemporalConv(
                    self._features(smaller), dtype=self.dtype, name=name
                )(hidden)
                frames = hidden.shape[1]
                hidden = hidden.reshape(-1, *hidden.shape[2:])
        hidden = hidden.reshape(len(clips), frames, *hidden.shape[1:])
        return self._head(hidden.astype(dtype), labels)

    def _features(self, size: tuple[int, int]) -> int:
        return channels_at(size, self.channel_base, self.channel_max)

    def _block(self, hidden: Array, size: tuple[int, int], smaller: tuple[int, int]) -> Array:
        """Two convolutions beside a shortcut; both halve the size."""
        name, after = f"{size[0]}x{size[1]}", self._features(smaller)
        half: dict[str, Any] = {"down": 2, "gain": math.sqrt(0.5), "dtype": self.dtype}
        shortcut = EqualizedConv(
            after, 1, use_bias=False, activate=False, name=f"{name}_shortcut", **half
        )(hidden)
        first = EqualizedConv(self._features(size), dtype=self.dtype, name=f"{name}_conv0")
        second = EqualizedConv(after, name=f"{name}_conv1", **half)
        return split_images(second(first(hidden)) + shortcut)

    def _head(
        self, hidden: Float[Array, "B T H W F"], labels: Int[Array, "B"] | None
    ) -> Float[Array, "B"]:
        """From the smallest resolution of the frames that are left to logits."""
        batch, frames, height, width, features = hidden.shape
        if self.group_size > 1:
            # Frames side by side, so that a group is of clips.
            tall = hidden.reshape(batch, frames * height, width, features)
            tall = minibatch_standard_deviation(tall, self.group_size)
            hidden = tall.reshape(batch, frames, height, width, features + 1)
        folded = hidden.reshape(-1, *hidden.shape[2:])
        folded = EqualizedConv(features, dtype=hidden.dtype, name="head_conv")(folded)
        flat = folded.reshape(batch, -1)
        flat = EqualizedDense(features, activate=True, name="dense")(flat)
        if not self.num_classes:
            return EqualizedDense(1, name="output")(flat)[:, 0]
        outputs = EqualizedDense(features, name="output")(flat)
        mapping = MappingNetwork(features, self.mapping_layers, self.num_classes, name="mapping")
        return jnp.sum(outputs * mapping(None, labels), -1) / math.sqrt(features)


class EqualizedTemporalConv(nn.Module):
    """A convolution over time that halves the frames, each pixel for itself; then leaky ReLU.

    Attributes:
        features: output features F.
        kernel_size: frames of the kernel, an odd number.
        dtype: dtype of computation.
    """

    features: int
    kernel_size: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, clips: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H W F"]:
        """Map [B, T, H, W, C] to [B, (T + 1) // 2, H, W, F]."""
        size, channels = self.kernel_size, clips.shape[-1]
        shape = (size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel *= 1.0 / math.sqrt(size * channels)
        outputs = temporal_conv(clips.astype(self.dtype), kernel, stride=2)
        return leaky_relu(outputs + bias.astype(self.dtype))
