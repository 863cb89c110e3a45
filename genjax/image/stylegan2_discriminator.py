"""The discriminator of StyleGAN2, with projection on the label where there are classes.

Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN"; for classes Miyato and
Koyama 2018, "cGANs with projection discriminator".

Letters: B batch, H height, W width, C channels.
"""

import itertools
import math
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.image.sizes import resolutions
from genjax.image.stylegan2_layers import (
    LOW_PASS,
    EqualizedConv,
    EqualizedDense,
    MappingNetwork,
    channels_at,
    minibatch_standard_deviation,
)
from genjax.nn.convolution import PaddingMode
from genjax.nn.layout import split_images
from genjax.nn.resample import Filter, downsample2d, normalized

Architecture = Literal["residual", "skip", "plain"]
"""How resolutions follow: residual blocks, the image fed in at each, or neither."""


class StyleGAN2Discriminator(nn.Module):
    """Blocks that halve the size, minibatch standard deviation, two dense layers.

    Attributes:
        image_shape: (H, W, C) of the images.
        num_classes: classes of the labels; 0 for none.
        channel_base: channels at a resolution are this over its longer side,
        channel_max: but at most this.
        mapping_layers: dense layers of the network of the labels.
        architecture: how resolutions follow.
        group_size: examples of a group of the minibatch standard deviation; 1 leaves it out.
        taps: resampling filter.
        padding_mode: what lies beyond the border.
        dtype: dtype of the blocks; the smallest resolution is float32.
    """

    image_shape: tuple[int, int, int]
    num_classes: int = 0
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    architecture: Architecture = "residual"
    group_size: int = 4
    taps: Filter = LOW_PASS
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
        """Logits, float32 [B]: high for images taken to be real."""
        del train
        sizes = resolutions(self.image_shape)[::-1]
        images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
        hidden = None
        for size, smaller in itertools.pairwise(sizes):
            hidden = self._block(images, hidden, size, smaller)
            if self.architecture == "skip":
                taps = normalized(self.taps)
                images = downsample2d(images, taps, padding_mode=self.padding_mode)
        assert hidden is not None
        return self._head(images, hidden.astype(images.dtype), sizes[-1], labels)

    def _features(self, size: tuple[int, int]) -> int:
        return channels_at(size, self.channel_base, self.channel_max)

    def _conv(self, features: int, kernel_size: int, name: str, **settings: Any) -> EqualizedConv:
        shared = {"padding_mode": self.padding_mode, "taps": self.taps, "dtype": self.dtype}
        fields: dict[str, Any] = {**shared, **settings}
        return EqualizedConv(features, kernel_size, name=name, **fields)

    def _block(
        self,
        images: Array,
        hidden: Array | None,
        size: tuple[int, int],
        smaller: tuple[int, int],
    ) -> Array:
        """Two convolutions; the second one halves the size."""
        name = f"{size[0]}x{size[1]}"
        residual = self.architecture == "residual"
        features, after = self._features(size), self._features(smaller)
        if hidden is None or self.architecture == "skip":
            new = self._conv(features, 1, f"{name}_image")(images)
            hidden = new if hidden is None else hidden + new
        shortcut = None
        if residual:
            shortcut = self._conv(
                after,
                1,
                f"{name}_shortcut",
                down=2,
                use_bias=False,
                activate=False,
                gain=math.sqrt(0.5),
            )(hidden)
        hidden = self._conv(features, 3, f"{name}_conv0")(hidden)
        gain = math.sqrt(0.5) if residual else 1.0
        hidden = self._conv(after, 3, f"{name}_conv1", down=2, gain=gain)(hidden)
        return split_images(hidden if shortcut is None else hidden + shortcut)

    def _head(
        self,
        images: Array,
        hidden: Array,
        size: tuple[int, int],
        labels: Int[Array, "B"] | None,
    ) -> Float[Array, "B"]:
        """From the smallest resolution to logits."""
        features, name = self._features(size), f"{size[0]}x{size[1]}"
        whole: dict[str, Any] = {"dtype": hidden.dtype}
        if self.architecture == "skip":
            hidden = hidden + self._conv(features, 1, f"{name}_image", **whole)(images)
        if self.group_size > 1:
            hidden = minibatch_standard_deviation(hidden, self.group_size)
        hidden = self._conv(features, 3, f"{name}_conv", **whole)(hidden)
        hidden = hidden.reshape(len(hidden), -1)
        hidden = EqualizedDense(features, activate=True, name="dense")(hidden)
        if not self.num_classes:
            return EqualizedDense(1, name="output")(hidden)[:, 0]
        outputs = EqualizedDense(features, name="output")(hidden)
        mapping = MappingNetwork(features, self.mapping_layers, self.num_classes, name="mapping")
        return jnp.sum(outputs * mapping(None, labels), -1) / math.sqrt(features)
