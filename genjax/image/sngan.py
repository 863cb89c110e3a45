"""SNGAN: residual generator with batch normalisation, spectrally normalised discriminator.

Papers: Miyato, Kataoka, Koyama and Yoshida 2018, "Spectral normalization for generative
adversarial networks"; Miyato and Koyama 2018, "cGANs with projection discriminator", from which
the conditional forms are: batch normalisation with a scale and a bias for each class in the
generator, and the product of a class's embedding with the features in the discriminator.

Letters: B batch, H height, W width, C channels, F output channels, Z latent size.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.errors import UserError
from genjax.image.labels import check_labels, output_dtype
from genjax.nn.batch_norm import BatchNorm, ConditionalBatchNorm
from genjax.nn.convolution import Conv, PaddingMode
from genjax.nn.dense import Dense
from genjax.nn.layout import split_images
from genjax.nn.spectral import SpectralConv, SpectralDense, SpectralNorm

GENERATOR_CHANNELS: dict[int, dict[str, Any]] = {
    32: {"base_channels": 256, "channels": (256, 256, 256)},
    64: {"base_channels": 1024, "channels": (512, 256, 128, 64)},
    128: {"base_channels": 1024, "channels": (1024, 512, 256, 128, 64)},
}
"""Fields of the generator by size of the image. 32 and 128 are the papers' for CIFAR-10 and
ImageNet; 64 is that of 128 without its first block."""

DISCRIMINATOR_CHANNELS: dict[int, dict[str, Any]] = {
    32: {"channels": (128, 128, 128, 128), "num_downsample": 2},
    64: {"channels": (64, 128, 256, 512, 1024), "num_downsample": 4},
    128: {"channels": (64, 128, 256, 512, 1024, 1024), "num_downsample": 5},
}
"""Fields of the discriminator by size of the image; 64 is 128 without one of its widest blocks."""

BATCH_NORM_EPSILON = 2e-5
"""The papers' addition to the variance."""

# He initialisation with uniform numbers and both fans, as Glorot's: twice the variance on the
# residual paths, where a rectifier comes before; once elsewhere.
_path_init = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
_plain_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def _double(images: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    """Each pixel as a square of four."""
    batch, height, width, channels = images.shape
    squares = jnp.broadcast_to(
        images[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)
    )
    return squares.reshape(batch, 2 * height, 2 * width, channels)


def _halve(images: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    """The mean of each square of four pixels."""
    batch, height, width, channels = images.shape
    squares = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return squares.mean((2, 4))


class GeneratorBlock(nn.Module):
    """Residual block that doubles the resolution.

    Attributes:
        features: output channels F.
        num_classes: classes of its batch normalisation; 0 makes it plain.
        padding_mode: what lies beyond the border.
        momentum: of the running averages of batch normalisation.
        dtype: dtype of computation.
    """

    features: int
    num_classes: int
    padding_mode: PaddingMode
    momentum: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "B H W C"], labels: Int[Array, "B"] | None, train: bool
    ) -> Float[Array, "B H2 W2 F"]:
        """Grow, [B, H, W, C] to [B, 2 H, 2 W, F]."""
        states = _double(jax.nn.relu(self._norm(inputs, labels, train, "norm0")))
        states = self._conv("conv0")(states)
        states = jax.nn.relu(self._norm(states, labels, train, "norm1"))
        states = self._conv("conv1")(states)
        # Copying pixels and mixing channels commute; this order does a quarter of the work.
        shortcut = Conv(
            self.features, kernel_size=1, kernel_init=_plain_init, dtype=self.dtype, name="shortcut"
        )
        return states + _double(shortcut(inputs))

    def _conv(self, name: str) -> Conv:
        return Conv(
            self.features,
            padding_mode=self.padding_mode,
            kernel_init=_path_init,
            dtype=self.dtype,
            name=name,
        )

    def _norm(self, inputs: Array, labels: Array | None, train: bool, name: str) -> Array:
        if labels is None:
            return BatchNorm(BATCH_NORM_EPSILON, self.momentum, name=name)(inputs, train)
        norm = ConditionalBatchNorm(self.num_classes, BATCH_NORM_EPSILON, self.momentum, name=name)
        return norm(inputs, labels, train)


class SNGenerator(nn.Module):
    """Images from latents by residual blocks, each of which doubles the resolution.

    Attributes:
        image_shape: height, width and channels of an image; height and width divide by two to the
            power of the number of blocks.
        latent_size: features Z of a latent vector.
        num_classes: number of classes; 0 makes it unconditional.
        base_channels: channels before the first block; see `GENERATOR_CHANNELS`.
        channels: channels after each block.
        padding_mode: what lies beyond an image's border; "circular" makes tileable textures.
        momentum: what batch normalisation's running averages keep of themselves at a step.
        dtype: dtype of computation. Parameters, statistics and images are float32.
    """

    image_shape: tuple[int, int, int] = (32, 32, 3)
    latent_size: int = 128
    num_classes: int = 0
    base_channels: int = 256
    channels: tuple[int, ...] = (256, 256, 256)
    padding_mode: PaddingMode = "zeros"
    momentum: float = 0.9
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "B Z"],
        labels: Int[Array, "B"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Images of latents, in [-1, 1].

        Args:
            latents: standard normal vectors.
            labels: the class of each image.
            train: whether batch normalisation uses the batch's own statistics.

        Raises:
            UserError: labels lack or would be ignored, or the blocks do not fit the images.
        """
        check_labels(labels, self.num_classes)
        height, width = self._base()
        base = Dense(
            height * width * self.base_channels,
            kernel_init=_plain_init,
            dtype=self.dtype,
            name="base",
        )
        states = base(latents).reshape(-1, height, width, self.base_channels)
        for number, features in enumerate(self.channels):
            block = GeneratorBlock(
                features,
                self.num_classes,
                self.padding_mode,
                self.momentum,
                self.dtype,
                name=f"block{number}",
            )
            states = split_images(block(states, labels, train))
        norm = BatchNorm(BATCH_NORM_EPSILON, self.momentum, name="norm")
        to_image = Conv(
            self.image_shape[2],
            padding_mode=self.padding_mode,
            kernel_init=_plain_init,
            dtype=self.dtype,
            name="to_image",
        )
        images = to_image(jax.nn.relu(norm(states, train)))
        return jnp.tanh(split_images(images.astype(output_dtype(self.dtype))))

    def _base(self) -> tuple[int, int]:
        height, width = self.image_shape[:2]
        factor = 2 ** len(self.channels)
        if height % factor or width % factor:
            raise UserError(
                f"images of {height}x{width} cannot be made by doubling {len(self.channels)} times;"
                f" give channels fewer entries, or make height and width multiples of {factor}"
            )
        return height // factor, width // factor


class DiscriminatorBlock(nn.Module):
    """Residual block of a discriminator, in its three forms.

    Attributes:
        features: output channels F.
        downsample: whether it halves the resolution.
        first: whether it reads an image, which is not rectified and whose shortcut is pooled
            before it is convolved.
        padding_mode: what lies beyond the border.
        dtype: dtype of computation.
    """

    features: int
    downsample: bool
    first: bool
    padding_mode: PaddingMode
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H2 W2 F"]:
        """[B, H, W, C] to [B, H, W, F], or half as high and wide; `train` as in `SpectralNorm`."""
        inputs = inputs.astype(self.dtype)
        channels = inputs.shape[-1]
        hidden = self.features if self.first else channels
        states = inputs if self.first else jax.nn.relu(inputs)
        states = self._conv(hidden, "conv0")(states, train)
        states = self._conv(self.features, "conv1")(jax.nn.relu(states), train)
        if self.downsample:
            # Means and mixing of channels commute; this order does a quarter of the work.
            states, inputs = _halve(states), _halve(inputs)
        if self.downsample or channels != self.features:
            shortcut = SpectralConv(
                self.features,
                kernel_size=1,
                kernel_init=_plain_init,
                dtype=self.dtype,
                name="shortcut",
            )
            inputs = shortcut(inputs, train)
        return states + inputs

    def _conv(self, features: int, name: str) -> SpectralConv:
        return SpectralConv(
            features,
            kernel_init=_path_init,
            padding_mode=self.padding_mode,
            dtype=self.dtype,
            name=name,
        )


class SNDiscriminator(nn.Module):
    """Logits of images by residual blocks, every weight of them spectrally normalised.

    Attributes:
        num_classes: number of classes; 0 makes it unconditional, otherwise it is a projection
            discriminator.
        channels: channels after each block; see `DISCRIMINATOR_CHANNELS`.
        num_downsample: how many blocks, from the first, halve the resolution.
        padding_mode: what lies beyond an image's border.
        dtype: dtype of computation. Parameters, statistics and logits are float32.
    """

    num_classes: int = 0
    channels: tuple[int, ...] = (128, 128, 128, 128)
    num_downsample: int = 2
    padding_mode: PaddingMode = "zeros"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W C"],
        labels: Int[Array, "B"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B"]:
        """Logits of images, higher for those taken to be real.

        Args:
            images: height and width divide by two to the power of `num_downsample`.
            labels: the class of each image.
            train: whether the norms' singular vectors are kept; the logits do not depend on it.

        Raises:
            UserError: labels lack or would be ignored, or the blocks do not fit the images.
        """
        check_labels(labels, self.num_classes)
        factor = 2**self.num_downsample
        if math.gcd(images.shape[1], images.shape[2]) % factor:
            raise UserError(
                f"images of {images.shape[1]}x{images.shape[2]} cannot be halved "
                f"num_downsample = {self.num_downsample} times; lower it"
            )
        states = images
        for number, features in enumerate(self.channels):
            block = DiscriminatorBlock(
                features,
                number < self.num_downsample,
                number == 0,
                self.padding_mode,
                self.dtype,
                name=f"block{number}",
            )
            states = split_images(block(states, train))
        wide = output_dtype(self.dtype)
        features = jax.nn.relu(states).astype(wide).sum((1, 2))
        head = SpectralDense(1, kernel_init=_plain_init, dtype=wide, name="output")
        logits = head(features, train)[:, 0]
        if labels is None:
            return logits
        shape = (self.num_classes, features.shape[-1])
        table = self.param("class_embedding", _plain_init, shape)
        table = SpectralNorm(name="class_spectral")(table, train).astype(wide)
        return logits + (table[labels] * features).sum(-1)
