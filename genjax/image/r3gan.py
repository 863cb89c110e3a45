"""R3GAN, configuration E: a GAN of plain residual stages, for the relativistic pairing loss.

Paper: Huang, Gokaslan, Kuleshov and Tompkin 2024, "The GAN is dead; long live the GAN! A modern
GAN baseline". Both networks are stages of residual blocks at resolutions that double, without
normalisation, equalised learning rates, style injection or minibatch statistics. The generator's
lowest stage starts from a learned basis of features scaled by a linear map of the latent; the
discriminator's ends with each feature's product with such a basis. Classes are embedded and
concatenated to the latent; in the discriminator the embedding is multiplied with the output
features.

Counting parameters. With width w, expansion e and group size g, a block holds
    w (e w) + 9 g (e w) + (e w) w + 2 (e w).
For w = 768, e = 2, g = 16 that is 2,583,552. A change of width adds the product of both widths,
the images' 1x1 convolution 3 w, a basis 16 w, the linear map beside it inputs times outputs, and
an embedding classes times its size. Hence, with a latent of 64 and two blocks a stage:

    CIFAR-10, 4 stages of 768, embeddings of 64 in G and 768 in D:
        G  8 x 2,583,552 + 2,304 + 12,288 + (64 + 64) 768 + 10 x 64 = 20,781,952
        D  8 x 2,583,552 + 2,304 + 12,288 + 768 x 768 + 10 x 768 = 21,280,512
    FFHQ 64, the same and a stage of 384 (701,952 a block):
        G  20,668,416 + 2 x 701,952 + 768 x 384 + 1,152 + 12,288 + 64 x 768 = 22,429,824
        D  20,668,416 + 2 x 701,952 + 768 x 384 + 1,152 + 12,288 + 768 = 22,381,440
    FFHQ 256, the same and stages of 192 and 96 (203,520 and 64,896 a block):
        G  22,367,232 + 2 x 203,520 + 384 x 192 + 2 x 64,896 + 192 x 96
           + 288 + 12,288 + 64 x 768 = 23,057,952
        D  22,996,224 + 288 + 12,288 + 768 = 23,009,568
    ImageNet 64, 5 stages of 1536 in groups of 32 (10,328,064 a block), embeddings of 64 and 1536:
        G  10 x 10,328,064 + 4,608 + 24,576 + (64 + 64) 1536 + 1000 x 64 = 103,570,432
        D  10 x 10,328,064 + 4,608 + 24,576 + 1536 x 1536 + 1000 x 1536 = 107,205,120

Letters: B batch, H height, W width, C channels, Z latent size.
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.errors import UserError
from genjax.image.labels import check_labels, output_dtype
from genjax.image.r3gan_layers import (
    Downsample,
    ResidualBlock,
    Upsample,
    pointwise,
    scaled_normal,
)
from genjax.nn.convolution import PaddingMode
from genjax.nn.dense import Dense
from genjax.nn.layout import split_images

PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {"stage_widths": (768,) * 4},
    "ffhq64": {"stage_widths": (768,) * 4 + (384,)},
    "ffhq256": {"stage_widths": (768,) * 4 + (384, 192, 96)},
    "imagenet64": {"stage_widths": (1536,) * 5, "group_size": 32},
    # By its compiler's estimate, a TPU takes five times as long for a convolution in groups of 16
    # as for a dense one of six times the operations: its matrix unit is 128 wide.
    "tpu32": {"stage_widths": (768,) * 4, "expansion": 4 / 3, "group_size": 128},
    "tpu64": {"stage_widths": (768,) * 4 + (384,), "expansion": 4 / 3, "group_size": 128},
    "tpu256": {
        "stage_widths": (768,) * 4 + (384, 192, 96),
        "expansion": 4 / 3,
        "group_size": 128,
    },
    "tpu32_dense": {"stage_widths": (512,) * 4, "expansion": 1, "group_size": None},
}
"""Fields that generator and discriminator share: the published configurations by data set, and
for TPUs some by resolution, of 7 to 12% more parameters."""


def _base(image_shape: tuple[int, ...], num_stages: int) -> tuple[int, int]:
    """Height and width of the lowest of stages that double."""
    height, width = image_shape[:2]
    factor = 2 ** (num_stages - 1)
    if height % factor or width % factor:
        raise UserError(
            f"images of {height}x{width} cannot be halved {num_stages - 1} times; give stage_widths"
            f" fewer than {num_stages} entries, or make height and width multiples of {factor}"
        )
    return height // factor, width // factor


class _Stages(nn.Module):
    """The fields and the residual blocks that generator and discriminator share."""

    stage_widths: tuple[int, ...] = (768,) * 4
    blocks_per_stage: int | tuple[int, ...] = 2
    expansion: float = 2
    group_size: int | None = 16
    padding_mode: PaddingMode = "zeros"
    dtype: DTypeLike = jnp.float32
    float32_stages: int = 1

    def _blocks(self) -> tuple[int, ...]:
        """Number of blocks of each stage."""
        if isinstance(self.blocks_per_stage, int):
            return (self.blocks_per_stage,) * len(self.stage_widths)
        if len(self.blocks_per_stage) != len(self.stage_widths):
            raise UserError(
                f"blocks_per_stage has {len(self.blocks_per_stage)} entries for the "
                f"{len(self.stage_widths)} of stage_widths; give one number, or one a stage"
            )
        return self.blocks_per_stage

    def _dtype(self, stage: int) -> DTypeLike:
        return output_dtype(self.dtype) if stage < self.float32_stages else self.dtype

    def _residual_blocks(self, stage: int) -> Iterator[ResidualBlock]:
        """The blocks of a stage, made one after the other."""
        blocks = self._blocks()
        for number in range(blocks[stage]):
            yield ResidualBlock(
                round(self.stage_widths[stage] * self.expansion),
                self.group_size,
                sum(blocks),
                self.padding_mode,
                self._dtype(stage),
                name=f"stage{stage}_block{number}",
            )


class R3Generator(_Stages):
    """R3GAN's generator.

    Attributes:
        stage_widths: channels of each stage, from the lowest resolution to the highest.
        blocks_per_stage: residual blocks of every stage, or of each.
        expansion: channels inside a block, as a multiple of the stage's width.
        group_size: channels of a group of the 3x3 convolutions; None makes them dense.
        padding_mode: what lies beyond an image's border; "circular" makes tileable textures.
        dtype: dtype of computation. Parameters and images are float32.
        float32_stages: how many stages, from the lowest, compute in float32 whatever `dtype`.
        image_shape: height, width and channels of an image. Height and width divide by two to the
            power of the number of stages less one; published ones come down to 4x4.
        latent_size: features Z of a latent vector.
        num_classes: number of classes; 0 makes it unconditional.
        class_embedding_size: features of a class; None takes `latent_size`.
    """

    image_shape: tuple[int, int, int] = (32, 32, 3)
    latent_size: int = 64
    num_classes: int = 0
    class_embedding_size: int | None = None

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "B Z"],
        labels: Int[Array, "B"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Images of latents; nothing bounds them.

        Args:
            latents: standard normal vectors.
            labels: the class of each image.
            train: makes no difference.

        Raises:
            UserError: labels lack or would be ignored, or the stages do not fit the images.
        """
        del train
        check_labels(labels, self.num_classes)
        lowest = self._dtype(0)
        features = latents.astype(lowest)
        if labels is not None:
            shape = (self.num_classes, self.class_embedding_size or self.latent_size)
            table = self.param("class_embedding", scaled_normal(), shape)
            features = jnp.concatenate([features, table[labels].astype(lowest)], axis=-1)
        width = self.stage_widths[0]
        base = _base(self.image_shape, len(self.stage_widths))
        basis = self.param("basis", nn.initializers.normal(1.0), (*base, width))
        scales = Dense(
            width, use_bias=False, kernel_init=scaled_normal(), dtype=lowest, name="basis_scales"
        )
        states = basis.astype(lowest) * scales(features)[:, None, None, :]
        for stage, width in enumerate(self.stage_widths):
            if stage:
                grow = Upsample(
                    width, self.padding_mode, self._dtype(stage), name=f"stage{stage}_upsample"
                )
                states = grow(states)
            for block in self._residual_blocks(stage):
                states = split_images(block(states))
        wide = output_dtype(self.dtype)
        to_image = pointwise(self.image_shape[2], scaled_normal(), wide, name="to_image")
        return split_images(to_image(states))


class R3Discriminator(_Stages):
    """R3GAN's discriminator.

    Attributes:
        stage_widths: channels of each stage, from the lowest resolution to the highest.
        blocks_per_stage: as in the generator, and so are the following.
        expansion: channels inside a block, as a multiple of the stage's width.
        group_size: channels of a group of the 3x3 convolutions; None makes them dense.
        padding_mode: what lies beyond an image's border.
        dtype: dtype of computation. Parameters and logits are float32.
        float32_stages: how many stages, from the lowest, compute in float32 whatever `dtype`.
        num_classes: number of classes; 0 makes it unconditional.
        class_embedding_size: features of a class and of the output that it is multiplied with;
            None takes the lowest stage's width.
    """

    num_classes: int = 0
    class_embedding_size: int | None = None

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
            images: of a size that fits the stages, always the same one.
            labels: the class of each image.
            train: makes no difference.

        Raises:
            UserError: labels lack or would be ignored, or the stages do not fit the images.
        """
        del train
        check_labels(labels, self.num_classes)
        base = _base(images.shape[1:], len(self.stage_widths))
        last = len(self.stage_widths) - 1
        from_image = pointwise(
            self.stage_widths[last], scaled_normal(), self._dtype(last), name="from_image"
        )
        states = from_image(images)
        for stage in reversed(range(len(self.stage_widths))):
            for block in self._residual_blocks(stage):
                states = split_images(block(states))
            if stage:
                width, dtype = self.stage_widths[stage - 1], self._dtype(stage)
                shrink = Downsample(
                    width, self.padding_mode, dtype, name=f"stage{stage}_downsample"
                )
                states = shrink(states)
        wide = output_dtype(self.dtype)
        basis_init = nn.initializers.normal((base[0] * base[1]) ** -0.5)
        basis = self.param("basis", basis_init, (*base, states.shape[-1]))
        features = (states.astype(wide) * basis.astype(wide)).sum((1, 2))
        size = 1 if labels is None else self.class_embedding_size or self.stage_widths[0]
        head = Dense(
            size, use_bias=False, kernel_init=scaled_normal(), dtype=wide, name="basis_outputs"
        )
        outputs = head(features)
        if labels is None:
            return outputs[:, 0]
        shape = (self.num_classes, size)
        table = self.param("class_embedding", scaled_normal(size**-0.5), shape)
        return (outputs * table[labels].astype(wide)).sum(-1)
