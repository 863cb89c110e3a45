"""Generator and discriminator of dense layers, as in the first paper on adversarial networks.

Paper: Goodfellow et al. 2014, "Generative adversarial nets". Images are flattened, so any shape
will do: `image_shape = (1, 1, 2)` with `output = "linear"` makes points in the plane. Classes are
concatenated to the input as one-hot vectors (Mirza and Osindero 2014, "Conditional generative
adversarial nets").

Letters: B batch, H height, W width, C channels, Z latent size, F features.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.image.labels import one_hot, output_dtype
from genjax.nn.batch_norm import BatchNorm
from genjax.nn.dense import Dense

LEAKY_SLOPE = 0.2
"""Slope of "leaky_relu" below zero."""

_he_normal = nn.initializers.he_normal()


class Maxout(nn.Module):
    """The largest of several affine maps, feature by feature.

    Paper: Goodfellow et al. 2013, "Maxout networks".

    Attributes:
        features: number of output features F.
        pieces: number of affine maps.
        dtype: dtype of computation.
    """

    features: int
    pieces: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B D"]) -> Float[Array, "B F"]:
        """Apply the maps, [B, D] to [B, F]."""
        maps = Dense(
            self.features * self.pieces, kernel_init=_he_normal, dtype=self.dtype, name="maps"
        )
        return maps(inputs).reshape(-1, self.features, self.pieces).max(-1)


def _rectify(inputs: Array, activation: str) -> Array:
    return jax.nn.relu(inputs) if activation == "relu" else jax.nn.leaky_relu(inputs, LEAKY_SLOPE)


def _with_classes(
    inputs: Array, labels: Array | None, num_classes: int, dtype: DTypeLike
) -> Float[Array, "B D"]:
    classes = one_hot(labels, num_classes, dtype)
    parts = [inputs.astype(dtype)] if classes is None else [inputs.astype(dtype), classes]
    return jnp.concatenate(parts, axis=-1)


class DenseGenerator(nn.Module):
    """Images from latents by dense layers.

    Attributes:
        image_shape: height, width and channels of an image.
        latent_size: features Z of a latent vector.
        num_classes: number of classes; 0 makes it unconditional.
        hidden_sizes: features of each hidden layer.
        activation: what follows each hidden layer.
        batch_norm: whether batch normalisation stands before each activation.
        output: "tanh" keeps images in [-1, 1]; "linear" does not bound them.
        dtype: dtype of computation. Parameters and images are float32.
    """

    image_shape: tuple[int, int, int]
    latent_size: int = 100
    num_classes: int = 0
    hidden_sizes: tuple[int, ...] = (256, 512)
    activation: Literal["relu", "leaky_relu"] = "relu"
    batch_norm: bool = False
    output: Literal["tanh", "linear"] = "tanh"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "B Z"],
        labels: Int[Array, "B"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Images of latents.

        Args:
            latents: usually normal or uniform vectors.
            labels: the class of each image.
            train: whether batch normalisation uses the batch's own statistics.

        Raises:
            UserError: labels lack, or would be ignored.
        """
        features = _with_classes(latents, labels, self.num_classes, self.dtype)
        for number, size in enumerate(self.hidden_sizes):
            hidden = Dense(
                size,
                use_bias=not self.batch_norm,
                kernel_init=_he_normal,
                dtype=self.dtype,
                name=f"hidden{number}",
            )
            features = hidden(features)
            if self.batch_norm:
                features = BatchNorm(name=f"norm{number}")(features, train)
            features = _rectify(features, self.activation)
        output = Dense(math.prod(self.image_shape), dtype=self.dtype, name="output")
        images = output(features).astype(output_dtype(self.dtype))
        if self.output == "tanh":
            images = jnp.tanh(images)
        return images.reshape(-1, *self.image_shape)


class DenseDiscriminator(nn.Module):
    """Logits of images by dense layers.

    Attributes:
        num_classes: number of classes; 0 makes it unconditional.
        hidden_sizes: features of each hidden layer.
        activation: what makes a hidden layer; "maxout" is Goodfellow's.
        maxout_pieces: affine maps a feature of "maxout".
        dtype: dtype of computation. Parameters and logits are float32.
    """

    num_classes: int = 0
    hidden_sizes: tuple[int, ...] = (512, 256)
    activation: Literal["relu", "leaky_relu", "maxout"] = "leaky_relu"
    maxout_pieces: int = 5
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
            images: any shape, always the same one.
            labels: the class of each image.
            train: makes no difference.

        Raises:
            UserError: labels lack, or would be ignored.
        """
        del train
        flat = images.reshape(images.shape[0], -1)
        features = _with_classes(flat, labels, self.num_classes, self.dtype)
        for number, size in enumerate(self.hidden_sizes):
            name = f"hidden{number}"
            if self.activation == "maxout":
                features = Maxout(size, self.maxout_pieces, self.dtype, name=name)(features)
            else:
                hidden = Dense(size, kernel_init=_he_normal, dtype=self.dtype, name=name)
                features = _rectify(hidden(features), self.activation)
        wide = output_dtype(self.dtype)
        return Dense(1, dtype=wide, name="output")(features)[:, 0]
