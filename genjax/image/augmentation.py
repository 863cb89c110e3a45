"""Augmentation of what a discriminator sees, chosen by config, and mirroring of real images.

Shapes: B batch, H height, W width, C channels.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8
from pydantic import Field, field_validator

from genjax.config import Config
from genjax.image.ada import Category, ada
from genjax.image.augmentation_pixels import Probability
from genjax.image.diffaugment import POLICIES, Policy, diffaugment
from genjax.nn.layout import split_examples, split_images

Augmentation = Callable[[Array, Array, Probability], Array]
"""From images [B, H, W, C] in about [-1, 1], a random key and a probability to such images.

Pure and differentiable (twice) in the images; each image has its own draws.
"""

Names = TypeVar("Names", bound=tuple[str, ...])


def _once_each(names: Names) -> Names:
    if not names:
        raise ValueError('empty; name one at least, or choose kind = "none"')
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} stands twice; each is applied once, in a fixed order")
    return names


class NoAugmentation(Config):
    """The discriminator sees images as they are."""

    kind: Literal["none"] = "none"
    """No augmentation."""


class DiffAugmentConfig(Config):
    """DiffAugment (Zhao et al. 2020): for small data sets, always applied."""

    kind: Literal["diffaugment"] = "diffaugment"
    """Random colours, translations and cutout for every image."""
    policies: tuple[Policy, ...] = POLICIES
    """Which to apply: "color", "translation", "cutout"."""

    @field_validator("policies")
    @classmethod
    def _policies_once(cls, policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
        return _once_each(policies)


class ADAConfig(Config):
    """Adaptive discriminator augmentation (Karras et al. 2020), with or without adaptation."""

    kind: Literal["ada"] = "ada"
    """Many augmentations, each with a probability that follows overfitting."""
    categories: tuple[Category, ...] = ("blit", "geometry", "colour")
    """Which to apply: "blit" (flips, quarter turns, whole-pixel moves), "geometry" (scaling,
    rotation, stretching, sub-pixel moves), "colour", "filter" (octave bands), "noise", "cutout"."""
    colour_share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Probability of colour transforms, as a share of the others'."""
    probability: float | None = Field(default=None, ge=0.0, le=1.0)
    """Hold the probability here instead of adapting it."""
    initial_probability: float = Field(default=0.0, ge=0.0, le=1.0)
    """Where the adapted probability begins."""
    target: float = Field(default=0.6, ge=-1.0, le=1.0)
    """Mean sign of the discriminator on real images at which the adapted probability stays."""
    interval: int = Field(default=4, ge=1)
    """Steps between adjustments of the probability."""
    adjustment_images: int = Field(default=500_000, ge=1)
    """Images over which the adapted probability can go from 0 to 1."""

    @field_validator("categories")
    @classmethod
    def _categories_once(cls, categories: tuple[Category, ...]) -> tuple[Category, ...]:
        return _once_each(categories)

    @field_validator("colour_share")
    @classmethod
    def _has_colour(cls, colour_share: float, info: Any) -> float:
        if colour_share != 1.0 and "colour" not in info.data.get("categories", ("colour",)):
            raise ValueError(f'{colour_share} does nothing without "colour" among the categories')
        return colour_share

    @field_validator("initial_probability", "target", "interval", "adjustment_images")
    @classmethod
    def _is_adapted(cls, value: Any, info: Any) -> Any:
        fixed = info.data.get("probability")
        default = cls.model_fields[str(info.field_name)].default
        if fixed is not None and value != default:
            raise ValueError(
                f"{value} does nothing while probability is held at {fixed}; leave one of them out"
            )
        return value


AugmentationConfig = Annotated[
    NoAugmentation | DiffAugmentConfig | ADAConfig, Field(discriminator="kind")
]


def _unchanged(images: Array, key: Array, probability: Probability) -> Array:
    del key, probability
    return images


def _of_whole_images(augment: Augmentation) -> Augmentation:
    """An augmentation of images that are split over devices by rows, too.

    It moves pixels anywhere in an image, so each device takes some of the images whole, and all
    rows go back to where they were.
    """

    def augmented(images: Array, key: Array, probability: Probability) -> Array:
        # Both layouts on both sides, so that neither spreads into the networks or into here.
        whole = split_examples(split_images(images))
        return split_images(split_examples(augment(whole, key, probability)))

    return augmented


def make_augmentation(config: AugmentationConfig, circular: bool = False) -> Augmentation:
    """The augmentation of a config; see `ada` and `diffaugment` for what it does.

    Args:
        config: which one. Only `ADAConfig` heeds the probability that the function is given.
        circular: whether the images tile, so that what moves in comes from the opposite edge.
    """
    match config:
        case NoAugmentation():
            return _unchanged
        case DiffAugmentConfig():

            def always(images: Array, key: Array, probability: Probability) -> Array:
                del probability
                return diffaugment(images, key, policies=config.policies, circular=circular)

            return _of_whole_images(always)
        case ADAConfig():
            adaptive = functools.partial(
                ada,
                categories=config.categories,
                circular=circular,
                colour_share=config.colour_share,
            )
            return _of_whole_images(adaptive)


def mirror(images: UInt8[Array, "B H W C"], key: Key[Array, ""]) -> UInt8[Array, "B H W C"]:
    """Mirror each image left and right with probability 1/2.

    For data whose mirror images are as likely as the data: it doubles the data set, and unlike
    augmentation of the discriminator's input the generator learns to make both.
    """
    flip = jax.random.bernoulli(key, 0.5, images.shape[:1])
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
