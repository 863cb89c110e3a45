"""Clips of StyleGAN2 frames: a style for the content, a recurrent code for the motion.

Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", for the layers;
Skorokhodov, Tulyakov and Elhoseiny 2022, "StyleGAN-V", for their use: the motion code joins the
style of each frame and the input of the synthesis, and neither noise of pixels nor mixing of
styles is there, which would differ from frame to frame. Motion is recurrent here and not a function
of continuous time.

Letters: B batch, T time, H height, W width, C channels, Z latent size, D size of a frame's style,
N frames of all clips.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.image.labels import check_labels
from genjax.image.sizes import resolutions
from genjax.image.stylegan2_generator import StyledConv, ToImage
from genjax.image.stylegan2_layers import (
    LOW_PASS,
    EqualizedConv,
    EqualizedDense,
    MappingNetwork,
    channels_at,
)
from genjax.nn.layout import split_images
from genjax.nn.resample import normalized, upsample2d
from genjax.video.conditions import Conditions
from genjax.video.first_frame import check_first, starting_with
from genjax.video.motion import MotionCodes, split_latents


class StyleGAN2VideoGenerator(nn.Module):
    """Content to style, noise to motion codes, and both to the frames of a clip.

    Attributes:
        image_shape: (H, W, C) of a frame.
        content_size: numbers of the content.
        motion_size: numbers of the noise of each frame.
        motion_features: features of the motion code.
        style_size: features of the content's style.
        num_classes: classes of the labels; 0 for none. They enter the style with the content, and
            through it the state that motion begins with.
        image_conditional: whether clips continue a first frame. Its features of each resolution
            are then added to those of the synthesis.
        channel_base: channels at a resolution are this over its longer side,
        channel_max: but at most this.
        mapping_layers: dense layers from content to style.
        dtype: dtype of the synthesis; clips, styles and motion codes are float32.
    """

    image_shape: tuple[int, int, int]
    content_size: int = 128
    motion_size: int = 16
    motion_features: int = 64
    style_size: int = 128
    num_classes: int = 0
    image_conditional: bool = False
    channel_base: int = 4096
    channel_max: int = 256
    mapping_layers: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, latents: Float[Array, "B Z"], conditions: Conditions, *, train: bool = False
    ) -> Float[Array, "B T H W C"]:
        """Clips, about in [-1, 1], of as many frames as the latents have noise for.

        Args:
            latents: [content | noise of frame 0 | noise of frame 1 | ...].
            conditions: labels with classes, first frames if image-conditional.
            train: without effect; no statistics are kept.
        """
        del train
        check_labels(conditions.labels, self.num_classes)
        check_first(conditions.first, self.image_conditional)
        content, noise = split_latents(latents, self.content_size, self.motion_size)
        mapping = MappingNetwork(
            self.style_size, self.mapping_layers, self.num_classes, name="mapping"
        )
        style = mapping(content, conditions.labels)
        start = jnp.tanh(EqualizedDense(self.motion_features, name="motion_start")(style))
        motion = MotionCodes(self.motion_features, name="motion")(noise, start).swapaxes(0, 1)
        encodings = None
        if conditions.first is not None:
            motion = motion[:, 1:]
            encodings = self._encodings(conditions.first, motion.shape[1])
        batch, frames, _ = motion.shape
        still = jnp.broadcast_to(style[:, None], (batch, frames, self.style_size))
        styles = jnp.concatenate([still, motion], -1).reshape(batch * frames, -1)
        images = FrameSynthesis(
            self.image_shape, self.channel_base, self.channel_max, self.dtype, name="synthesis"
        )(styles, encodings)
        clips = images.reshape(batch, frames, *self.image_shape)
        return clips if conditions.first is None else starting_with(conditions.first, clips)

    def _encodings(self, first: Array, frames: int) -> list[Array]:
        """Features of first frames for each resolution, from the smallest, repeated in time."""
        sizes = resolutions(self.image_shape)[::-1]
        hidden: Array = first
        levels = []
        for number, size in enumerate(sizes):
            features = channels_at(size, self.channel_base, self.channel_max)
            hidden = EqualizedConv(
                features,
                down=2 if number else 1,
                dtype=self.dtype,
                name=f"encoder_{size[0]}x{size[1]}",
            )(hidden)
            repeated = jnp.broadcast_to(hidden[:, None], (len(first), frames, *hidden.shape[1:]))
            levels.append(repeated.reshape(-1, *hidden.shape[1:]))
        return levels[::-1]


class FrameSynthesis(nn.Module):
    """StyleGAN2's synthesis with an input that moves, and room for features of another image.

    Attributes:
        image_shape: (H, W, C) of a frame.
        channel_base: channels at a resolution are this over its longer side,
        channel_max: but at most this.
        dtype: dtype of computation; images are float32.
    """

    image_shape: tuple[int, int, int]
    channel_base: int = 4096
    channel_max: int = 256
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, styles: Float[Array, "N D"], encodings: Sequence[Array] | None = None
    ) -> Float[Array, "N H W C"]:
        """Images of styles.

        Args:
            styles: [N, D], for all layers.
            encodings: features to add, [N, H2, W2, F] for each resolution from the smallest.
        """
        image = None
        hidden: Array = self._start(styles)
        for number, size in enumerate(resolutions(self.image_shape)):
            features = channels_at(size, self.channel_base, self.channel_max)
            name = f"{size[0]}x{size[1]}"
            if number:
                hidden = self._convolve(hidden, styles, f"{name}_conv0", features, up=2)
            if encodings is not None:
                hidden = (hidden + encodings[number]) * math.sqrt(0.5)
            hidden = self._convolve(hidden, styles, f"{name}_conv1", features)
            new = ToImage(self.image_shape[-1], name=f"{name}_image")(hidden, styles)
            image = new if image is None else new + upsample2d(image, normalized(LOW_PASS))
        assert image is not None
        return image

    def _start(self, styles: Array) -> Array:
        """A learned constant, and a part that follows the style: where things are."""
        size = resolutions(self.image_shape)[0]
        shape = (*size, channels_at(size, self.channel_base, self.channel_max))
        constant = self.param("constant", nn.initializers.normal(1.0), shape)
        moving = EqualizedDense(math.prod(shape), name="input")(styles).reshape(-1, *shape)
        return ((constant + moving) * math.sqrt(0.5)).astype(self.dtype)

    def _convolve(
        self, hidden: Array, styles: Array, name: str, features: int, up: int = 1
    ) -> Array:
        # The layer's number chooses the noise, of which there is none.
        layer = StyledConv(features, layer=0, up=up, noise=False, dtype=self.dtype, name=name)
        return split_images(layer(hidden, styles))
