"""The generator of StyleGAN2.

Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", and Karras et al. 2019,
"A style-based generator architecture for generative adversarial networks" (mapping, mixing,
truncation).

Letters: B batch, H height, W width, C channels, Z latent size, D style size, L layers with a style.
"""

import math
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
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
    leaky_relu,
    modulated_conv2d,
)
from genjax.nn.convolution import PaddingMode
from genjax.nn.layout import split_images
from genjax.nn.resample import Filter, normalized, upsample2d

Architecture = Literal["skip", "residual"]
"""How the layers of a resolution join the image: each adds its own, or as a residual block."""

Styles = Float[Array, "B L D"]


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias and leaky ReLU.

    Attributes:
        features: output channels.
        layer: number of the layer, from 0, which chooses its constant noise.
        up: 2 to double the size.
        noise: whether noise is added.
        gain: factor of the result.
        taps: resampling filter.
        padding_mode: what lies beyond the border.
        dtype: dtype of computation.
    """

    features: int
    layer: int
    up: int = 1
    noise: bool = True
    gain: float = 1.0
    taps: Filter = LOW_PASS
    padding_mode: PaddingMode = "zeros"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], style: Float[Array, "B D"]
    ) -> Float[Array, "B H2 W2 F"]:
        """Map [B, H, W, C] to [B, H up, W up, features]."""
        channels = images.shape[-1]
        shape = (3, 3, channels, self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        outputs = modulated_conv2d(
            images.astype(self.dtype),
            kernel,
            EqualizedDense(channels, bias_init=1.0, name="affine")(style),
            up=self.up,
            taps=self.taps,
            padding_mode=self.padding_mode,
        )
        if self.noise:
            strength = self.param("noise_strength", nn.initializers.zeros, ())
            outputs += (strength * self._noise(outputs.shape)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return leaky_relu(outputs + bias.astype(self.dtype), math.sqrt(2.0) * self.gain)

    def _noise(self, shape: Sequence[int]) -> Float[Array, "_ H W 1"]:
        """New noise for each example where the stream "noise" is given, else always the same."""
        if self.has_rng("noise"):
            return jax.random.normal(self.make_rng("noise"), (*shape[:3], 1))
        key = jax.random.fold_in(jax.random.key(0), self.layer)
        return jax.random.normal(key, (1, *shape[1:3], 1))


class ToImage(nn.Module):
    """Modulated 1x1 convolution to the image's channels, in float32, without demodulation."""

    channels: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], style: Float[Array, "B D"]
    ) -> Float[Array, "B H W F"]:
        """Map [B, H, W, C] to [B, H, W, channels]."""
        shape = (1, 1, images.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        affine = EqualizedDense(images.shape[-1], bias_init=1.0, name="affine")(style)
        affine *= 1.0 / math.sqrt(images.shape[-1])
        outputs = modulated_conv2d(images, kernel, affine, demodulate=False)
        return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)) + bias


class StyleGAN2Generator(nn.Module):
    """Mapping network and synthesis network.

    Attributes:
        image_shape: (H, W, C) of the images.
        latent_size: Z.
        style_size: D.
        num_classes: classes of the labels; 0 for none.
        channel_base: channels at a resolution are this over its longer side,
        channel_max: but at most this.
        mapping_layers: dense layers of the mapping network.
        architecture: "skip" adds up an image over the resolutions; "residual" has residual blocks.
        noise: whether noise enters after each convolution.
        style_mixing_probability: how often in training the layers from a random one on take their
            style from other latents (mixing regularisation).
        w_average_decay: decay of the average of styles, towards which truncation pulls.
        taps: resampling filter.
        padding_mode: "circular" for tileable textures.
        dtype: dtype of the synthesis network; images and styles are float32.
    """

    image_shape: tuple[int, int, int]
    latent_size: int = 512
    style_size: int = 512
    num_classes: int = 0
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    architecture: Architecture = "skip"
    noise: bool = True
    style_mixing_probability: float = 0.9
    w_average_decay: float = 0.995
    taps: Filter = LOW_PASS
    padding_mode: PaddingMode = "zeros"
    dtype: DTypeLike = jnp.float32

    @property
    def num_styles(self) -> int:
        """Layers L with a style: two a resolution; the first has one, the last image its own."""
        return 2 * len(resolutions(self.image_shape))

    def setup(self) -> None:
        """Both networks, and the average style."""
        self.mapping_network = MappingNetwork(
            self.style_size, self.mapping_layers, self.num_classes
        )
        self.synthesis_network = Synthesis(
            self.image_shape,
            self.channel_base,
            self.channel_max,
            self.architecture,
            self.noise,
            self.taps,
            self.padding_mode,
            self.dtype,
        )
        zeros = nn.initializers.zeros
        self.w_average = self.variable(
            "statistics", "w_average", lambda: zeros(jax.random.key(0), (self.style_size,))
        )

    def __call__(
        self,
        latents: Float[Array, "B Z"],
        labels: Int[Array, "B"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Images, about in [-1, 1]; training mixes styles and moves the average style."""
        return self.synthesis(self.styles(latents, labels, train=train))

    def styles(
        self,
        latents: Float[Array, "B Z"],
        labels: Int[Array, "B"] | None = None,
        *,
        train: bool = False,
    ) -> Styles:
        """The style of each layer, [B, L, D].

        With `train`, mixes with the styles of other latents from the stream "mixing", from a layer
        that the whole batch shares, and updates the average (by the first latents alone).
        """
        style = self.mapping_network(latents, labels)
        if train and not self.is_initializing():
            decay, old = self.w_average_decay, self.w_average.value
            self.w_average.value = old + (1.0 - decay) * (jnp.mean(style, 0) - old)
        styles = jnp.broadcast_to(style[:, None], (len(style), self.num_styles, self.style_size))
        if train and self.style_mixing_probability > 0 and self.has_rng("mixing"):
            latents_key, where_key, whether_key = jax.random.split(self.make_rng("mixing"), 3)
            other = self.mapping_network(
                jax.random.normal(latents_key, latents.shape, latents.dtype), labels
            )
            first = jax.random.randint(where_key, (), 1, self.num_styles)
            mixed = jax.random.uniform(whether_key) < self.style_mixing_probability
            changed = (jnp.arange(self.num_styles) >= first) & mixed
            styles = jnp.where(changed[None, :, None], other[:, None], styles)
        return styles

    def truncated_styles(
        self,
        latents: Float[Array, "B Z"],
        labels: Int[Array, "B"] | None,
        truncation: float | Float[Array, ""],
        cutoff: int | None = None,
    ) -> Styles:
        """Styles pulled towards the average: less variety, fewer failures.

        Args:
            latents: [B, Z].
            labels: [B], for a network with classes.
            truncation: psi; 1 leaves the styles as they are, 0 gives the average style.
            cutoff: only the first so many layers; all by default.
        """
        styles = self.styles(latents, labels)
        average = self.w_average.value
        pulled = average + truncation * (styles - average)
        if cutoff is None:
            return pulled
        return jnp.where(jnp.arange(self.num_styles)[None, :, None] < cutoff, pulled, styles)

    def synthesis(self, styles: Styles) -> Float[Array, "B H W C"]:
        """Images of styles [B, L, D]."""
        return self.synthesis_network(styles)


class Synthesis(nn.Module):
    """From the styles of all layers to images; the fields are those of `StyleGAN2Generator`."""

    image_shape: tuple[int, int, int]
    channel_base: int
    channel_max: int
    architecture: Architecture
    noise: bool
    taps: Filter
    padding_mode: PaddingMode
    dtype: DTypeLike

    @nn.compact
    def __call__(self, styles: Styles) -> Float[Array, "B H W C"]:
        """Images [B, H, W, C], float32, of styles [B, L, D]."""
        sizes = resolutions(self.image_shape)
        residual = self.architecture == "residual"
        layer = 0

        def convolve(hidden: Array, name: str, features: int, up: int = 1) -> Array:
            nonlocal layer
            gain = math.sqrt(0.5) if residual and layer and up == 1 else 1.0
            module = StyledConv(
                features,
                layer,
                up,
                self.noise,
                gain,
                self.taps,
                self.padding_mode,
                self.dtype,
                name=name,
            )
            layer += 1
            return split_images(module(hidden, styles[:, layer - 1]))

        image = None
        hidden = None
        for number, size in enumerate(sizes):
            features = channels_at(size, self.channel_base, self.channel_max)
            name = f"{size[0]}x{size[1]}"
            if hidden is None:
                shape = (*size, features)
                constant = self.param("constant", nn.initializers.normal(1.0), shape)
                hidden = jnp.broadcast_to(constant, (len(styles), *shape)).astype(self.dtype)
                hidden = convolve(hidden, f"{name}_conv1", features)
            else:
                shortcut = None
                if residual:
                    shortcut = EqualizedConv(
                        features,
                        1,
                        up=2,
                        use_bias=False,
                        activate=False,
                        gain=math.sqrt(0.5),
                        taps=self.taps,
                        padding_mode=self.padding_mode,
                        dtype=self.dtype,
                        name=f"{name}_shortcut",
                    )(hidden)
                hidden = convolve(hidden, f"{name}_conv0", features, up=2)
                hidden = convolve(hidden, f"{name}_conv1", features)
                hidden = hidden if shortcut is None else hidden + shortcut
            if not residual or number == len(sizes) - 1:
                # The image takes the style of the layer that comes next.
                new = ToImage(self.image_shape[-1], name=f"{name}_image")(hidden, styles[:, layer])
                if image is not None:
                    taps = normalized(self.taps)
                    new += upsample2d(image, taps, padding_mode=self.padding_mode)
                image = split_images(new)
        assert image is not None
        return image
