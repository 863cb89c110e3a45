"""The feature spaces in which images are compared.

An extractor is a pure, jittable function with its parameters beside it, so that it runs inside a
compiled evaluation step, split over devices like any other network. It computes in full float32,
also where the hardware would round products to fewer bits: figures must not depend on it.

Letters: B batch, H height, W width, C channels, D features, K classes.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from genjax.errors import UserError
from genjax.image.classifier import TrainedClassifier
from genjax.image.inception_v3 import FEATURES, FID_CLASSES, InceptionV3, resize_tensorflow1

Tree = Any
"""A pytree of arrays."""

Images = Float[Array, "B H W C"] | UInt8[Array, "B H W C"]
"""Generated images in about [-1, 1], or stored ones in 0..255."""


class Features(NamedTuple):
    """What an extractor sees in images."""

    features: Any
    """[B, D] float32."""
    probabilities: Any
    """Of each class, [B, K] float32; [B, C, K] where channels are judged one by one; or None."""


@runtime_checkable
class Extractor(Protocol):
    """What figures over features need to know of the features."""

    @property
    def name(self) -> str:
        """Short, ends the names of figures; "inception" alone makes an FID."""
        ...

    @property
    def params(self) -> Tree:
        """What to pass to `apply`: arguments of a compiled step, not constants in it."""
        ...

    def describe(self) -> str:
        """One line for the protocol beside the figures."""
        ...

    def apply(self, params: Tree, images: Images, *, quantize: bool = True) -> Features:
        """Features of images.

        Args:
            params: the extractor's.
            images: [B, H, W, C], float in about [-1, 1] or uint8.
            quantize: round float images to the 256 levels that a stored image has, as published
                figures do; False for path lengths, whose differences are smaller than a level.

        Raises:
            UserError: the extractor does not know images of this shape.
        """
        ...


def levels(images: Images, quantize: bool = True) -> Float[Array, "B H W C"]:
    """Images in 0..255, float32: whole numbers if `quantize`, otherwise as they come, unclipped.

    uint8 images are taken as they are, and float ones scaled so that x / 127.5 - 1 is undone.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32)
    images = (images.astype(jnp.float32) + 1) * 127.5
    return jnp.clip(jnp.round(images), 0, 255) if quantize else images


@dataclasses.dataclass(frozen=True, eq=False)
class InceptionExtractor:
    """The 2048 pooled features of Inception v3, in which FID and KID are defined.

    Attributes:
        params: from `genjax.image.inception_v3.load_inception`.
    """

    params: Tree

    @property
    def name(self) -> str:
        """The name "inception" for the weights that define FID, another for others."""
        return "inception" if self._num_classes == FID_CLASSES else "inception_other_weights"

    @property
    def _num_classes(self) -> int:
        return self.params["fc"]["kernel"].shape[1]

    def describe(self) -> str:
        """One line for the protocol beside the figures."""
        weights = (
            "the weights of 2015-12-05"
            if self._num_classes == FID_CLASSES
            else f"other weights than FID's ({self._num_classes} classes)"
        )
        return (
            f"Inception v3 with {weights}, {FEATURES} pooled features, 8-bit images resized to "
            "299x299 as TensorFlow 1 does (bilinear, not antialiased)"
        )

    def apply(self, params: Tree, images: Images, *, quantize: bool = True) -> Features:
        """Features [B, 2048] and probabilities of images with 1 (grey) or 3 channels.

        Raises:
            UserError: images have another number of channels.
        """
        if images.shape[3] not in (1, 3):
            raise UserError(
                f"Inception takes images with 1 or 3 channels, not {images.shape[3]}; "
                "choose other features"
            )
        resized = resize_tensorflow1(levels(images, quantize))
        colored = jnp.broadcast_to(resized, (*resized.shape[:3], 3))
        network = InceptionV3(params["fc"]["kernel"].shape[1])
        with jax.default_matmul_precision("highest"):
            outputs: Any = network.apply({"params": params}, (colored - 128) / 128)
        features, logits = outputs
        return Features(features, jax.nn.softmax(logits))


@dataclasses.dataclass(frozen=True, eq=False)
class ClassifierExtractor:
    """The features of a small classifier that was trained on the data at hand.

    Attributes:
        classifier: the classifier.
        stacked: judge every channel as an image of its own by a classifier of one channel, for
            images whose channels show a digit each.
    """

    classifier: TrainedClassifier
    stacked: bool = False

    @property
    def name(self) -> str:
        """The name "classifier"."""
        return "classifier"

    @property
    def params(self) -> Tree:
        """The classifier's parameters."""
        return self.classifier.params

    def describe(self) -> str:
        """One line for the protocol beside the figures."""
        how = ", each channel by itself" if self.stacked else ""
        return f"features of {self.classifier.label} on real images{how}"

    def apply(self, params: Tree, images: Images, *, quantize: bool = True) -> Features:
        """Features [B, 128] and probabilities [B, K]; stacked, [B, C 128] and [B, C, K].

        Raises:
            UserError: images are not of the classifier's shape.
        """
        batch, height, width, channels = images.shape
        shape = (height, width, 1 if self.stacked else channels)
        if shape != self.classifier.image_shape:
            raise UserError(
                f"the images are {_by(shape)}, and {self.classifier.label} knows "
                f"{_by(self.classifier.image_shape)}; train one on images of this shape"
            )
        x = levels(images, quantize) / 127.5 - 1
        if self.stacked:
            x = x.transpose(0, 3, 1, 2).reshape(batch * channels, *shape)
        with jax.default_matmul_precision("highest"):
            outputs: Any = self.classifier.module.apply({"params": params}, x)
        features, logits = outputs
        probabilities = jax.nn.softmax(logits)
        if self.stacked:
            features = features.reshape(batch, -1)
            probabilities = probabilities.reshape(batch, channels, -1)
        return Features(features, probabilities)


@dataclasses.dataclass(frozen=True, eq=False)
class PixelExtractor:
    """Images themselves, averaged to at most 8x8 pixels: features without any training.

    Points, "images" of one pixel, are features as they are: neither rounded nor clipped.
    """

    @property
    def name(self) -> str:
        """The name "pixels"."""
        return "pixels"

    @property
    def params(self) -> Tree:
        """None are needed."""
        return {}

    def describe(self) -> str:
        """One line for the protocol beside the figures."""
        return f"pixels in [-1, 1], averaged by area to at most {_PIXELS}x{_PIXELS}"

    def apply(self, params: Tree, images: Images, *, quantize: bool = True) -> Features:
        """Features [B, h w C] with h and w at most 8; no probabilities."""
        del params
        if images.shape[1:3] != (1, 1) or images.dtype == jnp.uint8:
            images = levels(images, quantize) / 127.5 - 1
        rows, columns = (_area_weights(size) for size in images.shape[1:3])
        averaged = jnp.einsum(
            "ph,bhwc,qw->bpqc", rows, images, columns, precision=jax.lax.Precision.HIGHEST
        )
        return Features(averaged.reshape(len(images), -1).astype(jnp.float32), None)


_PIXELS = 8


def _area_weights(size: int) -> np.ndarray:
    """What each of at most 8 equal stretches of a line takes of each of `size` pixels."""
    count = min(size, _PIXELS)
    edges = np.arange(count + 1) * (size / count)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0) * (count / size)).astype(np.float32)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
