"""Config of adversarial networks, and the Flax modules made from it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from pydantic import Field, model_validator

from genjax.config import Config
from genjax.image.dcgan import Conditioning, DCGANDiscriminator, DCGANGenerator
from genjax.image.dense_gan import DenseDiscriminator, DenseGenerator
from genjax.image.r3gan import R3Discriminator, R3Generator
from genjax.image.sizes import resolutions
from genjax.image.sngan import SNDiscriminator, SNGenerator
from genjax.image.stylegan2_discriminator import StyleGAN2Discriminator
from genjax.image.stylegan2_generator import StyleGAN2Generator
from genjax.nn.convolution import PaddingMode

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Dtype = Literal["float32", "bfloat16"]
Positive = Annotated[int, Field(ge=1)]
Shape = tuple[int, int, int]


class Networks(NamedTuple):
    """The two players, as modules of the interface that `genjax.image.adversarial` describes."""

    generator: nn.Module
    discriminator: nn.Module


class _Model(Config):
    dtype: Dtype = "float32"
    """Precision of computation; parameters, images and logits stay float32."""

    def make(self, image_shape: Shape, num_classes: int) -> Networks:
        """The networks for images of a shape, conditional where there are classes.

        Raises:
            ValueError: the shape does not fit; says what would.
        """
        raise NotImplementedError

    @property
    def circular(self) -> bool:
        """Whether images tile."""
        return getattr(self, "padding_mode", "zeros") == "circular"


class DenseConfig(_Model):
    """Dense layers (Goodfellow et al. 2014), for images of any size and for points in the plane."""

    kind: Literal["dense"] = "dense"
    """Dense layers."""
    latent_size: Positive = 100
    """Numbers in a latent vector."""
    generator_sizes: tuple[Positive, ...] = (256, 512)
    """Features of each hidden layer of the generator."""
    discriminator_sizes: tuple[Positive, ...] = (512, 256)
    """Features of each hidden layer of the discriminator."""
    generator_activation: Literal["relu", "leaky_relu"] = "relu"
    """What follows the generator's hidden layers."""
    discriminator_activation: Literal["relu", "leaky_relu", "maxout"] = "leaky_relu"
    """What follows the discriminator's hidden layers; "maxout" takes the largest of five maps."""
    batch_norm: bool = False
    """Batch normalisation in the generator."""
    output: Literal["tanh", "linear"] = "tanh"
    """"tanh" keeps images within their range; "linear" does not bound them."""

    def make(self, image_shape: Shape, num_classes: int) -> Networks:
        """Any shape fits."""
        dtype = _DTYPES[self.dtype]
        generator = DenseGenerator(
            image_shape=image_shape,
            latent_size=self.latent_size,
            num_classes=num_classes,
            hidden_sizes=self.generator_sizes,
            activation=self.generator_activation,
            batch_norm=self.batch_norm,
            output=self.output,
            dtype=dtype,
        )
        discriminator = DenseDiscriminator(
            num_classes=num_classes,
            hidden_sizes=self.discriminator_sizes,
            activation=self.discriminator_activation,
            dtype=dtype,
        )
        return Networks(generator, discriminator)


class DCGANConfig(_Model):
    """DCGAN (Radford et al. 2016): strided convolutions and batch normalisation."""

    kind: Literal["dcgan"] = "dcgan"
    """Strided convolutions."""
    latent_size: Positive = 100
    """Numbers in a latent vector."""
    base_channels: Positive = 64
    """Channels at half the image's size; each smaller size has twice as many."""
    max_channels: Positive = 512
    """Channels of any layer at most."""
    conditioning: Conditioning = "projection"
    """How labels enter the discriminator: "projection" of a class on the last features, or
    "concatenation" with the image."""
    discriminator_batch_norm: bool = True
    """Batch normalisation in the discriminator; turn it off for gradient penalties."""
    padding_mode: PaddingMode = "zeros"
    """What lies beyond an image's border; "circular" makes tileable textures."""

    def make(self, image_shape: Shape, num_classes: int) -> Networks:
        """Sizes that doubling makes fit."""
        resolutions(image_shape)
        shared: dict[str, Any] = {
            "image_shape": image_shape,
            "num_classes": num_classes,
            "base_channels": self.base_channels,
            "max_channels": self.max_channels,
            "padding_mode": self.padding_mode,
            "dtype": _DTYPES[self.dtype],
        }
        return Networks(
            DCGANGenerator(latent_size=self.latent_size, **shared),
            DCGANDiscriminator(
                conditioning=self.conditioning,
                use_batch_norm=self.discriminator_batch_norm,
                **shared,
            ),
        )


class SNGANConfig(_Model):
    """SNGAN (Miyato et al. 2018): residual blocks, spectral normalisation, projection."""

    kind: Literal["sngan"] = "sngan"
    """Residual blocks with spectral normalisation."""
    latent_size: Positive = 128
    """Numbers in a latent vector."""
    base_channels: Positive = 256
    """The generator's channels before its first block."""
    generator_channels: tuple[Positive, ...] = (256, 256, 256)
    """The generator's channels after each block; each doubles the size, from 4x4 for a square."""
    discriminator_channels: tuple[Positive, ...] = (128, 128, 128, 128)
    """The discriminator's channels after each block."""
    num_downsample: Positive = 2
    """How many of the discriminator's blocks halve the size."""
    padding_mode: PaddingMode = "zeros"
    """What lies beyond an image's border; "circular" makes tileable textures."""

    def make(self, image_shape: Shape, num_classes: int) -> Networks:
        """Sizes that the blocks can halve fit."""
        _halves(image_shape, len(self.generator_channels), "generator_channels")
        _halves(image_shape, self.num_downsample, "num_downsample")
        shared: dict[str, Any] = {
            "num_classes": num_classes,
            "padding_mode": self.padding_mode,
            "dtype": _DTYPES[self.dtype],
        }
        generator = SNGenerator(
            image_shape=image_shape,
            latent_size=self.latent_size,
            base_channels=self.base_channels,
            channels=self.generator_channels,
            **shared,
        )
        discriminator = SNDiscriminator(
            channels=self.discriminator_channels, num_downsample=self.num_downsample, **shared
        )
        return Networks(generator, discriminator)


class StyleGAN2Config(_Model):
    """StyleGAN2 (Karras et al. 2020): styles to control, mix, truncate and interpolate."""

    kind: Literal["stylegan2"] = "stylegan2"
    """Styles and modulated convolutions."""
    latent_size: Positive = 512
    """Numbers in a latent vector."""
    style_size: Positive = 512
    """Features of a style."""
    mapping_layers: Positive = 8
    """Dense layers from latent to style."""
    channel_base: Positive = 16384
    """Channels at a size are this over its longer side; the largest configurations have 32768."""
    channel_max: Positive = 512
    """Channels of any layer at most."""
    generator_architecture: Literal["skip", "residual"] = "skip"
    """How the generator's sizes join: each adds to the image, or residual blocks."""
    discriminator_architecture: Literal["residual", "skip", "plain"] = "residual"
    """How the discriminator's sizes follow: residual blocks, the image at each size, or neither."""
    noise: bool = True
    """Noise for each pixel after each convolution of the generator."""
    style_mixing_probability: float = Field(default=0.9, ge=0.0, le=1.0)
    """How often in training the styles of two latents are mixed."""
    group_size: Positive = 4
    """Images compared with each other by the discriminator; 1 for none."""
    padding_mode: PaddingMode = "zeros"
    """What lies beyond an image's border; "circular" makes tileable textures."""

    def make(self, image_shape: Shape, num_classes: int) -> Networks:
        """Sizes that doubling makes fit."""
        resolutions(image_shape)
        shared: dict[str, Any] = {
            "image_shape": image_shape,
            "num_classes": num_classes,
            "channel_base": self.channel_base,
            "channel_max": self.channel_max,
            "padding_mode": self.padding_mode,
            "dtype": _DTYPES[self.dtype],
        }
        generator = StyleGAN2Generator(
            latent_size=self.latent_size,
            style_size=self.style_size,
            mapping_layers=self.mapping_layers,
            architecture=self.generator_architecture,
            noise=self.noise,
            style_mixing_probability=self.style_mixing_probability,
            **shared,
        )
        discriminator = StyleGAN2Discriminator(
            architecture=self.discriminator_architecture, group_size=self.group_size, **shared
        )
        return Networks(generator, discriminator)


class R3GANConfig(_Model):
    """R3GAN (Huang et al. 2024): plain residual stages, for `objective.loss = "relativistic"`.

    For TPUs, whose matrix unit is 128 wide, group_size = 128 with expansion = 1.3333 has about as
    many parameters and far wider products.
    """

    kind: Literal["r3gan"] = "r3gan"
    """Residual stages without normalisation."""
    latent_size: Positive = 64
    """Numbers in a latent vector."""
    stage_widths: tuple[Positive, ...] = (768, 768, 768, 768)
    """Channels of each stage, from the smallest size up; each doubles the size."""
    blocks_per_stage: Positive = 2
    """Residual blocks of each stage."""
    expansion: float = Field(default=2.0, gt=0.0)
    """Channels inside a block, as a multiple of its stage's."""
    group_size: Positive | None = 16
    """Channels that a 3x3 convolution connects; "none" connects all."""
    float32_stages: int = Field(default=1, ge=0)
    """How many stages, from the smallest size, compute in float32 whatever dtype says."""
    padding_mode: PaddingMode = "zeros"
    """What lies beyond an image's border; "circular" makes tileable textures."""

    @model_validator(mode="after")
    def _groups_divide(self) -> "R3GANConfig":
        for width in self.stage_widths:
            inside = round(width * self.expansion)
            if self.group_size is not None and inside % self.group_size:
                raise ValueError(
                    f"group_size: {self.group_size} does not divide the {inside} channels inside "
                    f"the blocks of a stage of {width} (expansion {self.expansion:g})"
                )
        return self

    def make(self, image_shape: Shape, num_classes: int) -> Networks:
        """Sizes that the stages can halve fit."""
        _halves(image_shape, len(self.stage_widths) - 1, "stage_widths")
        shared: dict[str, Any] = {
            "stage_widths": self.stage_widths,
            "blocks_per_stage": self.blocks_per_stage,
            "expansion": self.expansion,
            "group_size": self.group_size,
            "float32_stages": self.float32_stages,
            "num_classes": num_classes,
            "padding_mode": self.padding_mode,
            "dtype": _DTYPES[self.dtype],
        }
        generator = R3Generator(image_shape=image_shape, latent_size=self.latent_size, **shared)
        return Networks(generator, R3Discriminator(**shared))


ModelConfig = Annotated[
    DenseConfig | DCGANConfig | SNGANConfig | StyleGAN2Config | R3GANConfig,
    Field(discriminator="kind"),
]


def _halves(image_shape: Sequence[int], times: int, field: str) -> None:
    height, width = image_shape[:2]
    if height % 2**times or width % 2**times:
        raise ValueError(
            f"model.{field} halves the images {times} times, which {height}x{width} do not allow: "
            f"sides should be multiples of {2**times}"
        )
