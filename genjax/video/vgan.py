"""VGAN: a moving foreground, a background that stands still, and a mask between them.

Vondrick, Pirsiavash and Torralba 2016, "Generating videos with scene dynamics". Three-dimensional
transposed convolutions make foreground and mask, two-dimensional ones the background. The paper's
clips have 32 frames of 64x64; smaller ones leave out doublings. Labels join the latents as a
one-hot vector, and in the discriminator a class's embedding is multiplied with the last features.

Letters: B batch, T time, H height, W width, C channels, Z latent size.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.image.labels import check_labels, one_hot, output_dtype
from genjax.image.sizes import resolutions
from genjax.nn.batch_norm import BatchNorm
from genjax.nn.convolution import ConvTranspose
from genjax.nn.convolution3d import Conv3D, ConvTranspose3D
from genjax.nn.layout import split_clips, split_images
from genjax.video.conditions import Conditions
from genjax.video.first_frame import FirstFrameEncoder, check_first, starting_with

_KERNEL = nn.initializers.normal(0.01)


class Streams(NamedTuple):
    """What a clip is made of.

    Attributes:
        clips: mask * foreground + (1 - mask) * background, in [-1, 1].
        masks: how much of each pixel is foreground, in [0, 1].
    """

    clips: Float[Array, "B T H W C"]
    masks: Float[Array, "B T H W 1"]


def time_doublings(clip_shape: tuple[int, int, int, int]) -> list[bool]:
    """For each doubling of the size, from the smallest size on, whether time doubles as well.

    Time doubles last, from two frames if there are doublings enough: always in the paper.

    Raises:
        ValueError: the frames are no power of two from 8, or the size is not one of at least 16
            that doubling makes.
    """
    frames, height, width, _ = clip_shape
    if frames < 8 or frames.bit_count() != 1:
        raise ValueError(
            f"VGAN makes clips by doubling time: their frames should be a power of two and at "
            f"least 8, such as 16 or 32, and are {frames}"
        )
    doublings = len(resolutions((height, width))) - 1
    if doublings < 2:
        raise ValueError(f"VGAN needs sides of 16 at least, and {height}x{width} is smaller")
    in_time = min(doublings, frames.bit_length() - 2)
    return [False] * (doublings - in_time) + [True] * in_time


def _layer(in_time: bool) -> dict[str, Any]:
    """Kernel, stride and padding of a convolution that doubles or halves the size."""
    if in_time:
        return {"kernel_size": (4, 4), "stride": (2, 2), "padding": (1, 1)}
    return {"kernel_size": (1, 4), "stride": (1, 2), "padding": (0, 1)}


class VGANGenerator(nn.Module):
    """Foreground, mask and background from one latent vector.

    Attributes:
        clip_shape: (T, H, W, C) of the clips.
        latent_size: Z.
        num_classes: classes of the labels; 0 for none.
        image_conditional: whether clips continue a first frame. Its encoding, at the smallest
            size, is then added to the features that the latents make there.
        base_channels: channels of the largest hidden resolution; each smaller one has twice as
            many.
        max_channels: but at most this.
        dtype: dtype of computation; clips are float32.
    """

    clip_shape: tuple[int, int, int, int]
    latent_size: int = 100
    num_classes: int = 0
    image_conditional: bool = False
    base_channels: int = 64
    max_channels: int = 512
    dtype: DTypeLike = jnp.float32

    def __call__(
        self, latents: Float[Array, "B Z"], conditions: Conditions, *, train: bool = False
    ) -> Float[Array, "B T H W C"]:
        """Clips in [-1, 1]; training uses the batch's statistics and moves their averages."""
        return self.clip_and_mask(latents, conditions, train=train).clips

    @nn.compact
    def clip_and_mask(
        self, latents: Float[Array, "B Z"], conditions: Conditions, *, train: bool = False
    ) -> Streams:
        """Clips and their masks; the paper penalises the masks' absolute values, with weight 0.1.

        Where a first frame is given, frame 0 is that frame; the mask is still that of all frames.
        """
        check_first(conditions.first, self.image_conditional)
        in_time = time_doublings(self.clip_shape)
        frames, *image_shape = self.clip_shape
        start = (frames >> sum(in_time), *resolutions(image_shape)[0])
        classes = one_hot(conditions.labels, self.num_classes, latents.dtype)
        inputs = latents if classes is None else jnp.concatenate([latents, classes], -1)
        encoding = None
        if conditions.first is not None:
            encoding = self._encoder()(conditions.first, train=train)

        features = self._foreground(inputs, encoding, start, in_time[:-1], train)
        channels, dtype = self.clip_shape[-1], output_dtype(self.dtype)
        foreground, mask = (
            ConvTranspose3D(
                width, **_layer(in_time[-1]), kernel_init=_KERNEL, dtype=self.dtype, name=name
            )(features).astype(dtype)
            for width, name in ((channels, "foreground"), (1, "mask"))
        )
        background = self._background(inputs, encoding, start[1:], len(in_time) - 1, train)
        foreground, masks = jnp.tanh(foreground), nn.sigmoid(mask)
        still = jnp.tanh(background.astype(dtype))[:, None]
        clips = masks * foreground + (1.0 - masks) * still
        if conditions.first is not None:
            clips = starting_with(conditions.first, clips[:, 1:])
        return Streams(clips, masks)

    def _encoder(self) -> FirstFrameEncoder:
        _, height, width, channels = self.clip_shape
        return FirstFrameEncoder(
            (height, width, channels),
            self.base_channels,
            self.max_channels,
            dtype=self.dtype,
            name="encoder",
        )

    def _features(self, level: int, levels: int) -> int:
        return min(self.base_channels << (levels - level), self.max_channels)

    def _activated(self, hidden: Array, name: str, train: bool) -> Array:
        split = split_images if hidden.ndim == 4 else split_clips
        return split(nn.relu(BatchNorm(dtype=self.dtype, name=name)(hidden, train)))

    def _first(
        self, inputs: Array, encoding: Array | None, shape: tuple[int, ...], name: str
    ) -> Array:
        """The smallest features [B, *shape] of latents and first frame."""

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features, use_bias=False, kernel_init=_KERNEL, dtype=self.dtype, name=name
            )

        hidden = dense(math.prod(shape), name)(inputs).reshape(-1, *shape)
        if encoding is None:
            return hidden
        mixed = dense(shape[-1], f"{name}_first")(encoding)
        return hidden + (mixed if hidden.ndim == mixed.ndim else mixed[:, None])

    def _foreground(
        self,
        inputs: Array,
        encoding: Array | None,
        start: tuple[int, int, int],
        in_time: list[bool],
        train: bool,
    ) -> Array:
        """The features of half the size, from which foreground and mask are made."""
        levels = len(in_time)
        shape = (*start, self._features(0, levels))
        hidden = self._first(inputs, encoding, shape, "foreground_input")
        hidden = self._activated(hidden, "foreground_norm_0", train)
        for level, doubled in enumerate(in_time):
            up = ConvTranspose3D(
                self._features(level + 1, levels),
                **_layer(doubled),
                use_bias=False,
                kernel_init=_KERNEL,
                dtype=self.dtype,
                name=f"foreground_up_{level}",
            )
            hidden = self._activated(up(hidden), f"foreground_norm_{level + 1}", train)
        return hidden

    def _background(
        self,
        inputs: Array,
        encoding: Array | None,
        start: tuple[int, int],
        levels: int,
        train: bool,
    ) -> Array:
        """The image behind, [B, H, W, C], before its tanh."""
        shape = (*start, self._features(0, levels))
        hidden = self._first(inputs, encoding, shape, "background_input")
        hidden = self._activated(hidden, "background_norm_0", train)
        for level in range(levels):
            up = ConvTranspose(
                self._features(level + 1, levels),
                use_bias=False,
                kernel_init=_KERNEL,
                dtype=self.dtype,
                name=f"background_up_{level}",
            )
            hidden = self._activated(up(hidden), f"background_norm_{level + 1}", train)
        return ConvTranspose(
            self.clip_shape[-1], kernel_init=_KERNEL, dtype=self.dtype, name="background"
        )(hidden)


class VGANDiscriminator(nn.Module):
    """Strided three-dimensional convolutions, the generator's sizes in reverse, and a dense layer.

    Attributes:
        clip_shape: (T, H, W, C) of the clips.
        num_classes: classes of the labels; 0 for none.
        base_channels: channels after the first convolution; each next one has twice as many.
        max_channels: but at most this.
        use_batch_norm: whether the convolutions after the first one are normalised. Gradient
            penalties want logits that do not depend on other clips.
        dtype: dtype of computation; logits are float32.
    """

    clip_shape: tuple[int, int, int, int]
    num_classes: int = 0
    base_channels: int = 64
    max_channels: int = 512
    use_batch_norm: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        clips: Float[Array, "B T H W C"],
        labels: Int[Array, "B"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B"]:
        """Logits, float32 [B]."""
        check_labels(labels, self.num_classes)
        hidden = clips
        for level, halved in enumerate(time_doublings(self.clip_shape)[::-1]):
            normalized = self.use_batch_norm and level > 0
            hidden = Conv3D(
                min(self.base_channels << level, self.max_channels),
                **_layer(halved),
                use_bias=not normalized,
                kernel_init=_KERNEL,
                dtype=self.dtype,
                name=f"down_{level}",
            )(hidden)
            if normalized:
                norm = BatchNorm(dtype=self.dtype, name=f"norm_{level}")
                hidden = norm(hidden, train)
            hidden = split_clips(nn.leaky_relu(hidden, 0.2))
        hidden = hidden.reshape(len(hidden), -1)
        hidden = hidden.astype(output_dtype(hidden.dtype))
        logits = nn.Dense(1, kernel_init=_KERNEL, name="output")(hidden)[:, 0]
        if labels is not None:
            table = self.param("class_embedding", _KERNEL, (self.num_classes, hidden.shape[-1]))
            logits += jnp.sum(hidden * table[labels], -1)
        return logits
