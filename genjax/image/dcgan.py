"""DCGAN: convolutions that double and halve the size, with batch normalisation.

Radford, Metz and Chintala 2016, "Unsupervised representation learning with deep convolutional
generative adversarial networks". Labels join the generator's latents as a one-hot vector (Mirza
and Osindero 2014, "Conditional generative adversarial nets"); in the discriminator they join the
image in the same way, or a class's embedding is multiplied with the last features (Miyato and
Koyama 2018, "cGANs with projection discriminator").

Letters: B batch, H height, W width, C channels, Z latent size.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.image.labels import one_hot
from genjax.image.sizes import resolutions
from genjax.nn.batch_norm import BatchNorm
from genjax.nn.convolution import Conv, ConvTranspose, PaddingMode
from genjax.nn.layout import split_images

Conditioning = Literal["projection", "concatenation"]
"""How labels enter the discriminator."""

_KERNEL = nn.initializers.normal(0.02)


def _scale_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class DCGANGenerator(nn.Module):
    """A dense layer to the smallest size, then transposed convolutions.

    Attributes:
        image_shape: (H, W, C) of the images.
        latent_size: Z.
        num_classes: classes of the labels; 0 for none.
        base_channels: channels of the largest hidden resolution; each smaller one has twice as
            many.
        max_channels: but at most this.
        padding_mode: "circular" for tileable textures.
        dtype: dtype of computation; images are float32.
    """

    image_shape: tuple[int, int, int]
    latent_size: int = 100
    num_classes: int = 0
    base_channels: int = 64
    max_channels: int = 512
    padding_mode: PaddingMode = "zeros"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "B Z"],
        labels: Int[Array, "B"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Images in [-1, 1]; training uses the batch's statistics and moves their averages."""
        (height, width), *larger = resolutions(self.image_shape)
        count = len(larger)
        classes = one_hot(labels, self.num_classes, latents.dtype)
        inputs = latents if classes is None else jnp.concatenate([latents, classes], -1)

        def widths(level: int) -> int:
            return min(self.base_channels << level, self.max_channels)

        def activated(hidden: Array, name: str) -> Array:
            norm = BatchNorm(scale_init=_scale_init, dtype=self.dtype, name=name)
            return split_images(nn.relu(norm(hidden, train)))

        features = widths(count - 1)
        hidden = nn.Dense(
            height * width * features,
            use_bias=False,
            kernel_init=_KERNEL,
            dtype=self.dtype,
            name="input",
        )(inputs)
        hidden = activated(hidden.reshape(-1, height, width, features), "norm_0")
        for level in range(count - 1):
            up = ConvTranspose(
                widths(count - 2 - level),
                padding_mode=self.padding_mode,
                use_bias=False,
                kernel_init=_KERNEL,
                dtype=self.dtype,
                name=f"up_{level}",
            )
            hidden = activated(up(hidden), f"norm_{level + 1}")
        images = ConvTranspose(
            self.image_shape[-1],
            padding_mode=self.padding_mode,
            kernel_init=_KERNEL,
            dtype=self.dtype,
            name="output",
        )(hidden)
        images = split_images(images.astype(jnp.promote_types(images.dtype, jnp.float32)))
        return jnp.tanh(images)


class DCGANDiscriminator(nn.Module):
    """Strided convolutions, then a dense layer.

    Attributes:
        image_shape: (H, W, C) of the images.
        num_classes: classes of the labels; 0 for none.
        conditioning: how labels enter: "projection" on the last features, or "concatenation" with
            the image, one more channel for each class.
        base_channels: channels after the first convolution; each next one has twice as many.
        max_channels: but at most this.
        use_batch_norm: whether the convolutions between the first and the last layer are
            normalised. Gradient penalties want logits that do not depend on other images.
        padding_mode: "circular" for tileable textures.
        dtype: dtype of computation; logits are float32.
    """

    image_shape: tuple[int, int, int]
    num_classes: int = 0
    conditioning: Conditioning = "projection"
    base_channels: int = 64
    max_channels: int = 512
    use_batch_norm: bool = True
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
        """Logits, float32 [B]."""
        count = len(resolutions(self.image_shape)) - 1
        activation: Callable[[Array], Array] = lambda x: nn.leaky_relu(x, 0.2)  # noqa: E731
        classes = one_hot(labels, self.num_classes, images.dtype)
        hidden = images
        if classes is not None and self.conditioning == "concatenation":
            planes = jnp.broadcast_to(classes[:, None, None], (*images.shape[:3], self.num_classes))
            hidden = jnp.concatenate([images, planes], -1)
        for level in range(count):
            normalized = self.use_batch_norm and level > 0
            hidden = Conv(
                min(self.base_channels << level, self.max_channels),
                kernel_size=4,
                stride=2,
                padding=1,
                padding_mode=self.padding_mode,
                use_bias=not normalized,
                kernel_init=_KERNEL,
                dtype=self.dtype,
                name=f"down_{level}",
            )(hidden)
            if normalized:
                norm = BatchNorm(scale_init=_scale_init, dtype=self.dtype, name=f"norm_{level}")
                hidden = norm(hidden, train)
            hidden = split_images(activation(hidden))
        hidden = hidden.reshape(len(hidden), -1)
        hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
        logits = nn.Dense(1, kernel_init=_KERNEL, name="output")(hidden)[:, 0]
        if labels is not None and self.conditioning == "projection":
            table = self.param("class_embedding", _KERNEL, (self.num_classes, hidden.shape[-1]))
            logits += jnp.sum(hidden * table[labels], -1)
        return logits
