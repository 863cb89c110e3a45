"""MoCoGAN: one content for a clip, a recurrent code for its motion, an image for each frame.

Tulyakov, Liu, Yang and Kautz 2018, "MoCoGAN: Decomposing motion and content for video generation".
One discriminator judges patches of single frames, another patches of clips. The paper's category
is here the label of the data: it joins the generator's codes as a one-hot vector, and in the
discriminators each class adds its own map to the logits. This replaces the paper's auxiliary
classifier, which recovers a category that the generator draws for itself. The motion code begins
at zeros, not at random: the noise of frame 0 makes it so.

Letters: B batch, T time, H height, W width, C channels, Z latent size, N frames of any clips,
P patches.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.image.dcgan import DCGANGenerator
from genjax.image.labels import check_labels, output_dtype
from genjax.nn.batch_norm import BatchNorm
from genjax.nn.convolution import Conv
from genjax.nn.convolution3d import Conv3D
from genjax.nn.layout import split_clips, split_images
from genjax.video.conditions import Conditions
from genjax.video.first_frame import FirstFrameEncoder, check_first, starting_with
from genjax.video.motion import MotionCodes, split_latents

_KERNEL = nn.initializers.normal(0.02)


def _scale_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class MoCoGANGenerator(nn.Module):
    """DCGAN's generator for each frame, from content, motion code and class.

    Attributes:
        image_shape: (H, W, C) of a frame.
        content_size: numbers of the content.
        motion_size: numbers of the motion code, and of the noise of each frame.
        num_classes: classes of the labels; 0 for none.
        image_conditional: whether clips continue a first frame. A code of it, of the content's
            size, then joins the content.
        base_channels: channels of the largest hidden resolution; each smaller one has twice as
            many.
        max_channels: but at most this.
        dtype: dtype of the images' network; clips are float32.
    """

    image_shape: tuple[int, int, int]
    content_size: int = 50
    motion_size: int = 10
    num_classes: int = 0
    image_conditional: bool = False
    base_channels: int = 64
    max_channels: int = 512
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, latents: Float[Array, "B Z"], conditions: Conditions, *, train: bool = False
    ) -> Float[Array, "B T H W C"]:
        """Clips in [-1, 1] of as many frames as the latents have noise for.

        Args:
            latents: [content | noise of frame 0 | noise of frame 1 | ...].
            conditions: labels with classes, first frames if image-conditional.
            train: whether to use the batch's statistics, and to move the running averages.
        """
        check_labels(conditions.labels, self.num_classes)
        check_first(conditions.first, self.image_conditional)
        content, noise = split_latents(latents, self.content_size, self.motion_size)
        motion = MotionCodes(self.motion_size, name="motion")(noise).swapaxes(0, 1)
        if conditions.first is not None:
            content = jnp.concatenate([content, self._encoded(conditions.first, train)], -1)
            motion = motion[:, 1:]
        batch, frames, _ = motion.shape
        still = jnp.broadcast_to(content[:, None], (batch, frames, content.shape[-1]))
        codes = jnp.concatenate([still, motion], -1).reshape(batch * frames, -1)
        labels = conditions.labels
        if labels is not None:
            labels = jnp.broadcast_to(labels[:, None], (batch, frames)).reshape(-1)
        images = DCGANGenerator(
            image_shape=self.image_shape,
            latent_size=codes.shape[-1],
            num_classes=self.num_classes,
            base_channels=self.base_channels,
            max_channels=self.max_channels,
            dtype=self.dtype,
            name="frames",
        )(codes, labels, train=train)
        clips = images.reshape(batch, frames, *self.image_shape)
        return clips if conditions.first is None else starting_with(conditions.first, clips)

    def _encoded(self, first: Array, train: bool) -> Array:
        encoder = FirstFrameEncoder(
            self.image_shape,
            self.base_channels,
            self.max_channels,
            dtype=self.dtype,
            name="encoder",
        )
        features = encoder(first, train=train).reshape(len(first), -1)
        code = nn.Dense(self.content_size, dtype=self.dtype, name="encoding")(features)
        return code.astype(output_dtype(self.dtype))


def _patch_logits(
    inputs: Array,
    labels: Array | None,
    convolution: Callable[[int, DTypeLike, str], Conv | Conv3D],
    judge: "PatchFrameDiscriminator | PatchClipDiscriminator",
    train: bool,
) -> Array:
    """Four convolutions, the last one with a map of logits and one to add for each class."""
    check_labels(labels, judge.num_classes)
    hidden, split = inputs, split_images if inputs.ndim == 4 else split_clips
    for level in range(3):
        hidden = convolution(judge.base_channels << level, judge.dtype, f"down_{level}")(hidden)
        if judge.use_batch_norm and level > 0:
            norm = BatchNorm(scale_init=_scale_init, dtype=judge.dtype, name=f"norm_{level}")
            hidden = norm(hidden, train)
        hidden = split(nn.leaky_relu(hidden, 0.2))
    maps = convolution(1 + judge.num_classes, output_dtype(judge.dtype), "output")(hidden)
    maps = maps.reshape(len(inputs), -1, maps.shape[-1])
    if labels is None:
        return maps[..., 0]
    chosen = jax.nn.one_hot(labels, judge.num_classes, dtype=maps.dtype)
    return maps[..., 0] + jnp.sum(maps[..., 1:] * chosen[:, None], -1)


class PatchFrameDiscriminator(nn.Module):
    """Logits of patches of single frames, by four strided convolutions.

    Convolutions have no bias. With the paper's widths these are the published 0.66 M parameters.

    Attributes:
        num_classes: classes of the labels; 0 for none.
        base_channels: channels after the first convolution; the next two have twice and four times
            as many.
        use_batch_norm: whether the second and third convolution are normalised. Gradient penalties
            want logits that do not depend on other frames.
        dtype: dtype of computation; logits are float32.
    """

    num_classes: int = 0
    base_channels: int = 64
    use_batch_norm: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "N H W C"],
        labels: Int[Array, "N"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "N P"]:
        """Logits, float32 [N, P]: a sixteenth of the height and width in patches."""

        def convolution(features: int, dtype: DTypeLike, name: str) -> Conv:
            return Conv(
                features,
                kernel_size=4,
                stride=2,
                padding=1,
                use_bias=False,
                kernel_init=_KERNEL,
                dtype=dtype,
                name=name,
            )

        return _patch_logits(images, labels, convolution, self, train)


class PatchClipDiscriminator(nn.Module):
    """Logits of patches of clips, by four three-dimensional convolutions of stride 1 in time.

    Convolutions have no bias. With the paper's widths these are the published 2.65 M parameters.

    Attributes:
        num_classes: classes of the labels; 0 for none.
        base_channels: channels after the first convolution; the next two have twice and four times
            as many.
        temporal_kernel_size: frames J of each kernel; clips need 4 (J - 1) + 1 at least.
        use_batch_norm: whether the second and third convolution are normalised. Gradient penalties
            want logits that do not depend on other clips.
        dtype: dtype of computation; logits are float32.
    """

    num_classes: int = 0
    base_channels: int = 64
    temporal_kernel_size: int = 4
    use_batch_norm: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        clips: Float[Array, "B T H W C"],
        labels: Int[Array, "B"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B P"]:
        """Logits, float32 [B, P]: T - 4 (J - 1) times a sixteenth of the height and width."""

        def convolution(features: int, dtype: DTypeLike, name: str) -> Conv3D:
            return Conv3D(
                features,
                kernel_size=(self.temporal_kernel_size, 4),
                stride=(1, 2),
                padding=(0, 1),
                use_bias=False,
                kernel_init=_KERNEL,
                dtype=dtype,
                name=name,
            )

        return _patch_logits(clips, labels, convolution, self, train)
