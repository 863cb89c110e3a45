"""Config of adversarial video networks, and the Flax modules made from it.

The modules' interface:

    generator(latents [B, Z], conditions, train=..) -> clips [B, T, H, W, C], about in [-1, 1]
    frame_discriminator(images [N, H, W, C], labels, train=..) -> logits [N] or [N, P]
    clip_discriminator(clips [B, T, H, W, C], labels, train=..) -> logits [B] or [B, P]

Letters: B batch, T time, H height, W width, C channels, Z latent size, N frames, P patches.
"""

from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from pydantic import Field

from genjax.config import Config
from genjax.image.sizes import resolutions
from genjax.image.stylegan2_discriminator import StyleGAN2Discriminator
from genjax.video.clip_discriminator import StyleGAN2ClipDiscriminator
from genjax.video.mocogan import MoCoGANGenerator, PatchClipDiscriminator, PatchFrameDiscriminator
from genjax.video.stylegan2_video import StyleGAN2VideoGenerator
from genjax.video.vgan import VGANDiscriminator, VGANGenerator, time_doublings

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Dtype = Literal["float32", "bfloat16"]
Positive = Annotated[int, Field(ge=1)]
ClipShape = tuple[int, int, int, int]


class VideoNetworks(NamedTuple):
    """The players of a video GAN; a model has one discriminator or both.

    Attributes:
        generator: makes clips.
        frame_discriminator: judges single frames, or None.
        clip_discriminator: judges whole clips, or None.
    """

    generator: nn.Module
    frame_discriminator: nn.Module | None
    clip_discriminator: nn.Module | None


class _Model(Config):
    dtype: Dtype = "float32"
    """Precision of computation; parameters, clips and logits stay float32."""

    def latent_size(self, frames: int) -> int:
        """Numbers in the latent vector of a clip of so many frames."""
        raise NotImplementedError

    def make(
        self, clip_shape: ClipShape, num_classes: int, image_conditional: bool
    ) -> VideoNetworks:
        """The networks for clips of a shape.

        Args:
            clip_shape: (T, H, W, C).
            num_classes: classes of the labels; 0 for an unconditional model.
            image_conditional: whether clips continue a given first frame.

        Raises:
            ValueError: the shape does not fit; says what would.
        """
        raise NotImplementedError


class VGANConfig(_Model):
    """VGAN (Vondrick et al. 2016): a moving foreground before a background that stands still.

    The number of frames is fixed by training. The paper's sizes are 64x64 pixels and 32 frames.
    """

    kind: Literal["vgan"] = "vgan"
    """Two streams and a mask."""
    content_size: Positive = 100
    """Numbers in a latent vector."""
    base_channels: Positive = 64
    """Channels at half the clip's size; each smaller size has twice as many."""
    max_channels: Positive = 512
    """Channels of any layer at most."""
    discriminator_batch_norm: bool = True
    """Batch normalisation in the discriminator; turn it off for gradient penalties."""

    def latent_size(self, frames: int) -> int:
        """The same for any number of frames."""
        del frames
        return self.content_size

    def make(
        self, clip_shape: ClipShape, num_classes: int, image_conditional: bool
    ) -> VideoNetworks:
        """Sizes that doubling makes fit, and a power of two of at least 8 frames."""
        time_doublings(clip_shape)
        shared: dict[str, Any] = {
            "clip_shape": clip_shape,
            "num_classes": num_classes,
            "base_channels": self.base_channels,
            "max_channels": self.max_channels,
            "dtype": _DTYPES[self.dtype],
        }
        generator = VGANGenerator(
            latent_size=self.content_size, image_conditional=image_conditional, **shared
        )
        discriminator = VGANDiscriminator(use_batch_norm=self.discriminator_batch_norm, **shared)
        return VideoNetworks(generator, None, discriminator)


class MoCoGANConfig(_Model):
    """MoCoGAN (Tulyakov et al. 2018): one content, recurrent motion, an image for each frame."""

    kind: Literal["mocogan"] = "mocogan"
    """Content and recurrent motion."""
    content_size: Positive = 50
    """Numbers that are the same for all frames of a clip."""
    motion_size: Positive = 10
    """Numbers of the motion code, and of the noise that drives it, for each frame."""
    base_channels: Positive = 64
    """Channels at half the image's size; each smaller size has twice as many."""
    max_channels: Positive = 512
    """Channels of any layer of the generator at most."""
    discriminator_channels: Positive = 64
    """Channels of the discriminators' first layer; the next ones have twice and four times that."""
    temporal_kernel_size: Positive = 4
    """Frames that each of the clip discriminator's four layers sees; clips need 4 (this - 1) + 1
    frames at least."""
    discriminator_batch_norm: bool = True
    """Batch normalisation in the discriminators; turn it off for gradient penalties."""

    def latent_size(self, frames: int) -> int:
        """The content, and noise for each frame."""
        return self.content_size + frames * self.motion_size

    def make(
        self, clip_shape: ClipShape, num_classes: int, image_conditional: bool
    ) -> VideoNetworks:
        """Sizes of at least 16 pixels that doubling makes fit, and as many frames as layers see."""
        frames, *image_shape = clip_shape
        resolutions(image_shape)
        if min(image_shape[:2]) < 16:
            raise ValueError(
                f"the patches of MoCoGAN's discriminators need sides of 16 at least, and "
                f"{image_shape[0]}x{image_shape[1]} is smaller"
            )
        needed = 4 * (self.temporal_kernel_size - 1) + 1
        if frames < needed:
            raise ValueError(
                f"model.temporal_kernel_size = {self.temporal_kernel_size} needs clips of "
                f"{needed} frames at least, and they have {frames}; "
                f"{(frames - 1) // 4 + 1} would fit"
            )
        dtype = _DTYPES[self.dtype]
        generator = MoCoGANGenerator(
            image_shape=(image_shape[0], image_shape[1], image_shape[2]),
            content_size=self.content_size,
            motion_size=self.motion_size,
            num_classes=num_classes,
            image_conditional=image_conditional,
            base_channels=self.base_channels,
            max_channels=self.max_channels,
            dtype=dtype,
        )
        shared: dict[str, Any] = {
            "num_classes": num_classes,
            "base_channels": self.discriminator_channels,
            "use_batch_norm": self.discriminator_batch_norm,
            "dtype": dtype,
        }
        return VideoNetworks(
            generator,
            PatchFrameDiscriminator(**shared),
            PatchClipDiscriminator(temporal_kernel_size=self.temporal_kernel_size, **shared),
        )


class StyleGAN2VideoConfig(_Model):
    """StyleGAN2 frames (Karras et al. 2020) whose styles a recurrent motion code moves.

    In the spirit of StyleGAN-V (Skorokhodov et al. 2022): motion joins the style and the input of
    the synthesis, and there is neither noise of pixels nor mixing of styles.
    """

    kind: Literal["stylegan2_video"] = "stylegan2_video"
    """Styles in motion."""
    content_size: Positive = 128
    """Numbers that are the same for all frames of a clip."""
    motion_size: Positive = 16
    """Numbers of the noise that drives the motion, for each frame."""
    motion_features: Positive = 64
    """Features of the recurrent motion code."""
    style_size: Positive = 128
    """Features of a style."""
    mapping_layers: Positive = 2
    """Dense layers from content to style."""
    channel_base: Positive = 4096
    """Channels at a size are this over its longer side."""
    channel_max: Positive = 256
    """Channels of any layer at most."""
    group_size: Positive = 4
    """Images or clips compared with each other by the discriminators; 1 for none."""

    def latent_size(self, frames: int) -> int:
        """The content, and noise for each frame."""
        return self.content_size + frames * self.motion_size

    def make(
        self, clip_shape: ClipShape, num_classes: int, image_conditional: bool
    ) -> VideoNetworks:
        """Sizes that doubling makes fit, and any number of frames."""
        _, height, width, channels = clip_shape
        image_shape = (height, width, channels)
        resolutions(image_shape)
        shared: dict[str, Any] = {
            "num_classes": num_classes,
            "channel_base": self.channel_base,
            "channel_max": self.channel_max,
            "mapping_layers": self.mapping_layers,
            "dtype": _DTYPES[self.dtype],
        }
        generator = StyleGAN2VideoGenerator(
            image_shape=image_shape,
            content_size=self.content_size,
            motion_size=self.motion_size,
            motion_features=self.motion_features,
            style_size=self.style_size,
            image_conditional=image_conditional,
            **shared,
        )
        judges: dict[str, Any] = {"group_size": self.group_size, **shared}
        return VideoNetworks(
            generator,
            StyleGAN2Discriminator(image_shape=image_shape, **judges),
            StyleGAN2ClipDiscriminator(clip_shape=clip_shape, **judges),
        )


VideoModelConfig = Annotated[
    VGANConfig | MoCoGANConfig | StyleGAN2VideoConfig, Field(discriminator="kind")
]
